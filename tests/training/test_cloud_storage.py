"""A run whose folder is on Google Cloud Storage, which an emulator on this machine stands for."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from etils import epath
from runs import World, assert_same_bits, command, environment, finish, saved, says, two_of
from storage_server import storage_server
from waiting import HANGS

from qil_jax.cli.train_arguments import parse_arguments
from qil_jax.errors import QilError
from qil_jax.files import is_remote, uploaded_folder, write_whole
from qil_jax.training.disk import free_bytes, move_folder, newest_step, run_folder
from qil_jax.training.sinks import LinesSink
from qil_jax.training.stages.kinds import Stage

pytestmark = pytest.mark.full

BUCKET = "gs://bucket"


@pytest.fixture(scope="module")
def storage() -> Iterator[dict[str, str]]:
    """The environment of programs that find an emulated, empty bucket; this process is one of them."""
    with storage_server("bucket") as where, pytest.MonkeyPatch.context() as patch:
        env = {
            "STORAGE_EMULATOR_HOST": where,
            "TENSORSTORE_GCS_HTTP_URL": where,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
        for name, value in env.items():
            patch.setenv(name, value)
        yield env


def fetched(remote: epath.Path, local: Path) -> Path:
    """A copy of a remote folder on this disk."""
    fsspec.filesystem("gs").get(str(remote), str(local), recursive=True)
    return local


def losses(text: str) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in map(json.loads, text.splitlines())]


def test_a_killed_run_goes_on_bit_for_bit_and_is_exported(world: World, storage, tmp_path):
    stage, steps = Stage.TEXT_TO_RGBA, 12
    held = world.held(tmp_path, stage, {"steps": steps, "trainable": "image_out"}, 7)
    env, local = environment(world.folder) | storage, tmp_path / "local"
    run = run_folder(f"{BUCKET}/runs/killed")
    finish(held.command(local), env)
    call = [str(run) if word == "RUN" else word for word in held.command(Path("RUN"))]
    assert "would begin with step 1 of 12" in finish([*call, "--check"], env) and newest_step(run) is None

    held.hold.touch()
    child = subprocess.Popen(call, env=env, stdout=subprocess.PIPE, text=True)
    says(child.stdout, "step 7 ")
    child.kill()
    child.communicate()
    held.hold.unlink()
    assert child.returncode == -signal.SIGKILL
    newest = newest_step(run)
    assert newest in (2, 4, 6) and not (run / "checkpoint").exists()

    assert f"it would go on from step {newest} of 12" in finish([*call, "--check"], env)
    assert f"the checkpoint is {run}/checkpoint" in finish(call, env)
    copy = fetched(run, tmp_path / "fetched")
    assert_same_bits(saved(copy, steps), saved(local, steps))
    assert losses((copy / "metrics.jsonl").read_text()) == losses((local / "metrics.jsonl").read_text())
    names = [str(file.relative_to(local)) for file in (local / "checkpoint").rglob("*") if file.is_file()]
    assert len(names) > 8
    assert {name for name in names if (copy / name).read_bytes() != (local / name).read_bytes()} == set()
    assert (copy / "experiment.json").read_bytes() == (local / "experiment.json").read_bytes()


@pytest.mark.slow
def test_validation_two_processes_and_a_damaged_checkpoint(world: World, storage, tmp_path):
    stage = Stage.TEXT_TO_RGBA
    changes = {"steps": 4, "trainable": "image_out", "validation.every": 2, "mesh.fsdp": 2}
    env, run = environment(world.folder) | storage, run_folder(f"{BUCKET}/runs/two")
    plain = world.settings(stage, changes)
    call = [str(run) if word == "RUN" else word for word in command(stage, Path("RUN"), plain)]
    for attempt in range(2):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        children = [subprocess.Popen(one, env=env, **pipes) for one in two_of(call)]
        outs = [child.communicate(timeout=HANGS)[0] for child in children]
        assert [child.returncode for child in children] == [0, 0], "\n".join(outs)
        if attempt == 0:
            (run / "checkpoints" / "4" / "position" / "metadata").unlink()
    assert "checkpoint 4 is damaged and now lies in gs://bucket/runs/two/damaged/4" in outs[0]
    assert (run / "damaged" / "4" / "commit_success.txt").exists() and newest_step(run) == 4
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2, 3, 4, 4]


def test_a_folder_appears_with_its_last_file(storage):
    destination = run_folder(f"{BUCKET}/appears")
    assert isinstance(destination, epath.Path)
    with pytest.raises(KeyboardInterrupt), uploaded_folder(destination, last="last.json") as folder:
        (folder / "last.json").touch()
        raise KeyboardInterrupt
    assert not destination.exists()
    for text in ("one", "two"):
        with uploaded_folder(destination, last="last.json") as folder:
            (folder / "part").mkdir()
            for name in ("last.json", "part/zero.bin", "a.bin"):
                (folder / name).write_text(text)
        assert {(destination / name).read_text() for name in ("last.json", "part/zero.bin", "a.bin")} == {text}
        (destination / "last.json").unlink()  # as if killed before it was written
    (destination / "last.json").write_text("whole")
    exists = pytest.raises(FileExistsError, match="exists: give another folder")
    with exists, uploaded_folder(destination, last="last.json"):
        raise AssertionError("not begun")


def test_files_folders_and_steps(storage):
    run = run_folder(f"{BUCKET}/small")
    assert is_remote(run) and free_bytes(run) is None and newest_step(run) is None
    write_whole(epath.Path(run / "x.txt"), b"one")
    write_whole(epath.Path(run / "x.txt"), b"two")
    assert (run / "x.txt").read_text() == "two" and [file.name for file in run.iterdir()] == ["x.txt"]
    for step in (2, 4):
        (run / "checkpoints" / str(step) / "state").write_text("")
    (run / "checkpoints" / "2" / "commit_success.txt").write_text("")
    assert newest_step(run) == 2, "step 4 is unfinished"
    move_folder(run / "checkpoints" / "2", run / "damaged" / "2")
    assert newest_step(run) is None and (run / "damaged" / "2" / "commit_success.txt").exists()


def test_lines_are_written_with_the_checkpoints(storage):
    run = run_folder(f"{BUCKET}/lines")
    lines = LinesSink(run, since=0)
    for step in (1, 2):
        lines.write(step, {"loss": 0.5})
    assert (run / "metrics.jsonl").read_text() == ""
    lines.flush()
    assert losses((run / "metrics.jsonl").read_text()) == [(1, 0.5), (2, 0.5)]
    lines.write(3, {"loss": 0.25})
    lines.close()
    assert losses((run / "metrics.jsonl").read_text())[-1] == (3, 0.25)
    again = LinesSink(run, since=1)
    again.close()
    assert losses((run / "metrics.jsonl").read_text()) == [(1, 0.5)]


def test_other_stores_and_profiles_are_refused(capsys):
    with pytest.raises(QilError, match="s3://bucket/run: give a folder of a local disk, or one that begins with gs://"):
        run_folder("s3://bucket/run")
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["config.py", "--out", "gs://bucket/run", "--profile", "3"])
    assert ended.value.code == 2 and "--profile writes to a local disk" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ['data.sources=["gs://bucket/records"]', "start.checkpoint=gs://bucket/base"])
def test_data_and_starts_are_local(world: World, storage, tmp_path, setting):
    stage = Stage.TEXT_TO_RGBA
    call = command(stage, tmp_path / "run", [*world.settings(stage, {}), setting])
    ended = subprocess.run(call, env=environment(world.folder) | storage, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stderr.startswith("error: gs://bucket/")
    assert "are read from local disks: copy them there first" in ended.stderr and not (tmp_path / "run").exists()
