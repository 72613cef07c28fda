"""Checkpoints: damage is noticed and passed over, and a full disk costs nothing that is there."""

import dataclasses
import gc
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from runs import GO_ON, QuickRuns, World, assert_same_bits, command, environment, saved
from waiting import HANGS

from qil_jax.mesh import make_mesh, single_device_mesh
from qil_jax.training import checkpoints, disk
from qil_jax.training.checkpoints import CheckpointError, Checkpoints, of_all
from qil_jax.training.experiment import CheckpointConfig, Experiment, ExperimentError
from qil_jax.training.loop import RunStatus, train
from qil_jax.training.optimiser import OptimiserConfig
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.step import TrainState, fresh_state

CHANGES = {"trainable": "image_out"}


def go(experiment: Experiment, run: Path, until: int = 10**9, mesh: Mesh | None = None) -> RunStatus:
    """Train, on one device unless there is a mesh."""
    mesh = mesh or single_device_mesh()
    status, _, _ = train(experiment, run, mesh, stop=lambda step: step >= until, show=lambda step, line: None)
    return status


class Runs:
    """Runs of one experiment whose objective compiles at once: what is tested is what lies on the disk."""

    def __init__(self, world: World):
        self.world = world

    def __call__(self, run: Path, until: int = 10**9, **changes) -> RunStatus:
        with pytest.MonkeyPatch.context() as patch:
            QuickRuns(self.world, patch)
            return go(self.world.experiment(Stage.TEXT_TO_RGBA, CHANGES | changes), run, until)


pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture(autouse=True)
def no_unfinished_reads():
    """Where one read fails, orbax leaves the others unfinished: their exceptions appear here, not in a later test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def quickly(world: World) -> Runs:
    return Runs(world)


@pytest.fixture(scope="module")
def uncut(quickly: Runs, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("uncut") / "run"
    assert quickly(run) is RunStatus.FINISHED
    return run


def largest(folder: Path) -> Path:
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def cut_short(folder: Path) -> None:
    file = largest(folder / "state")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(folder: Path) -> None:
    file = largest(folder / "state")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def lose_a_file(folder: Path) -> None:
    largest(folder / "state").unlink()


def lose_the_position(folder: Path) -> None:
    shutil.rmtree(folder / "position")


MORE_DAMAGE = [pytest.param(damage, marks=pytest.mark.slow) for damage in (flip_a_bit, lose_the_position)]


@pytest.mark.parametrize("damage", [cut_short, lose_a_file, *MORE_DAMAGE])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(quickly: Runs, uncut, tmp_path, damage):
    run = tmp_path / "run"
    assert quickly(run, until=4) is RunStatus.STOPPED
    damage(run / "checkpoints" / "4")
    with pytest.warns(UserWarning, match=r"checkpoint 4 is damaged and now lies in .*damaged/4"):
        assert quickly(run) is RunStatus.FINISHED
    assert (run / "damaged" / "4").is_dir()
    assert_same_bits(saved(run, 6), saved(uncut, 6))


def test_no_sound_checkpoint_is_an_error_not_a_new_start(quickly: Runs, tmp_path):
    run, changes = tmp_path / "run", {"checkpoints.every": 4}
    assert quickly(run, until=4, **changes) is RunStatus.STOPPED
    cut_short(run / "checkpoints" / "4")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(CheckpointError, match=r"no checkpoint of steps \[4\] can be read"),
    ):
        quickly(run, **changes)


def test_keep_last_and_keep_every(quickly: Runs, tmp_path):
    changes = {"checkpoints.every": 1, "checkpoints.keep_last": 2, "checkpoints.keep_every": 3}
    quickly(tmp_path / "run", **changes)
    assert sorted(int(f.name) for f in (tmp_path / "run" / "checkpoints").iterdir()) == [3, 5, 6]


def test_no_room_stops_the_run_before_it_writes(quickly: Runs, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert quickly(run, until=2) is RunStatus.STOPPED
    before = saved(run, 2)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"needs .* GB, 0.00 GB are free: make room"):
        quickly(run)
    monkeypatch.undo()
    assert_same_bits(saved(run, 2), before)
    assert quickly(run) is RunStatus.FINISHED


def test_a_disk_that_fills_while_writing(world: World, quickly: Runs, uncut, tmp_path):
    """Files may grow no further, as on a disk that others fill: the save fails, the run stops, nothing is lost."""
    run = tmp_path / "run"
    assert quickly(run, until=2) is RunStatus.STOPPED
    before = saved(run, 2)
    call = command(Stage.TEXT_TO_RGBA, run, world.settings(Stage.TEXT_TO_RGBA, CHANGES))
    limited = ["bash", "-c", 'ulimit -f 20; exec "$@"', "-", *call]
    bounded = {**environment(world.folder), "PYTHONDONTWRITEBYTECODE": "1"}  # else it would leave bytecode cut short
    ended = subprocess.run(limited, env=bounded, capture_output=True, text=True, timeout=HANGS, check=False)
    assert ended.returncode == 2
    assert re.search(r"^error: .*checkpoints: .* could not be (saved|written)", ended.stderr, re.MULTILINE)
    assert re.search(rf"^step 2 is saved; {GO_ON} ", ended.stderr, re.MULTILINE)
    assert "Traceback" not in ended.stdout + ended.stderr
    assert_same_bits(saved(run, 2), before)
    assert quickly(run) is RunStatus.FINISHED
    assert_same_bits(saved(run, 6), saved(uncut, 6))


def test_a_run_goes_on_with_its_own_settings_only(quickly: Runs, uncut, tmp_path):
    with pytest.raises(ExperimentError, match=r"run with other settings \(steps, optimiser differ"):
        quickly(uncut, **{"steps": 8, "optimiser.learning_rate": 0.1})
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ExperimentError, match="holds something that is no run"):
        quickly(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_another_mesh_takes_a_run_over(world: World, tmp_path):
    changes = {"data.loader.rows": 4, "steps": 8, "checkpoints.every": 4}
    one, many = (
        world.experiment(Stage.IMAGE_TO_LAYERS, changes | mesh) for mesh in ({}, {"mesh.fsdp": 4, "mesh.tensor": 2})
    )
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    assert go(one, alone) is RunStatus.FINISHED
    assert go(one, moved, until=4) is RunStatus.STOPPED
    assert go(many, moved, mesh=make_mesh(many.mesh)) is RunStatus.FINISHED
    found, wanted = saved(moved, 8), saved(alone, 8)
    assert str(found["/position"]) == str(wanted["/position"])
    for path in wanted:
        if path.startswith(("/params", "/ema_params")):
            scale = np.abs(wanted[path]).max() or 1.0
            assert np.abs(found[path] - wanted[path]).max() / scale <= 1e-5, path


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_metrics_of_an_attempt_that_was_lost_are_taken_out(quickly: Runs, uncut, tmp_path):
    """An attempt wrote lines after its last checkpoint, the last of them half: each step still has its one line."""
    run = tmp_path / "run"
    assert quickly(run, until=4) is RunStatus.STOPPED
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 5, "loss": 1e9}) + '\n{"step": 6, "lo')
    assert quickly(run) is RunStatus.FINISHED
    wanted = lines(uncut)
    assert [line["step"] for line in wanted] == [1, 2, 3, 4, 5, 6]
    assert [(line["step"], line["loss"]) for line in lines(run)] == [(line["step"], line["loss"]) for line in wanted]


def two_checkpoints(folder: Path, gather: Callable[[int], list[int]] = of_all) -> tuple[Checkpoints, TrainState]:
    """Checkpoints of steps 2 and 4 of a parameter times 2 and 4, and a state to restore into."""
    whole = jax.sharding.NamedSharding(single_device_mesh(), jax.sharding.PartitionSpec())
    state = fresh_state(
        {"scale": jax.device_put(jax.random.normal(jax.random.key(0), (4096,)), whole)}, OptimiserConfig(), steps=9
    )
    kept = Checkpoints(folder, CheckpointConfig(), gather=gather)
    for step in (2, 4):
        params = {"scale": state.params["scale"] * step}
        kept.save(dataclasses.replace(state, params=params, step=jnp.int32(step)), {"step": step})
    kept.wait()
    return kept, state


OTHERS = {
    "no permission": PermissionError(13, "Permission denied"),
    "an error of the disk": OSError(5, "Input/output error"),
    "another layout": ValueError("Requested shape: (8,) is not compatible with the stored shape: (4,)"),
    "a fault of the code": TypeError("unsupported operand"),
    "a server that does not answer": ValueError("UNAVAILABLE: Error reading"),
    "a wrapped one": Exception("Encountered error while reading array index"),
}


@pytest.mark.parametrize("error", OTHERS.values(), ids=OTHERS)
def test_what_is_no_damage_sets_nothing_aside(tmp_path, monkeypatch, error):
    kept, like = two_checkpoints(tmp_path)

    def failing(folder: Path, like: TrainState) -> None:
        raise error

    monkeypatch.setattr(checkpoints, "_restored", failing)
    with pytest.raises(type(error), match=re.escape(str(error))):
        kept.restore(like)
    assert kept.steps() == [2, 4] and not (tmp_path / "damaged").exists()
    kept.close()


def broken(how: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(how(file.read_bytes())) and None


DAMAGE = {
    "cut off": broken(lambda data: data[: len(data) // 2]),
    "empty": lambda file: file.write_bytes(b"") and None,
    "zeros": broken(lambda data: bytes(len(data))),
    "begun differently": broken(lambda data: bytes([data[0] ^ 0xFF]) + data[1:]),
    "lost": Path.unlink,
}
READ = ("position/metadata", "state/_METADATA", "state/manifest.ocdbt", "state/d/*", "state/ocdbt.process_0/d/*")
"""Files without which a checkpoint cannot be read. The rest are logs, and what the manifest has taken over."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax leaves reads that others failed
@pytest.mark.parametrize("how", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("files", READ)
def test_damage_of_any_file_is_noticed(tmp_path, files, how):
    kept, like = two_checkpoints(tmp_path)
    newest = tmp_path / "checkpoints" / "4"
    for file in newest.glob(files):
        how(file)
    unused = files == "state/_METADATA" and how is Path.unlink
    with nullcontext() if unused else pytest.warns(UserWarning, match="checkpoint 4 is damaged"):
        found = kept.restore(like)
    assert found is not None
    state, position = found
    step = 4 if unused else 2
    assert (int(state.step), position) == (step, {"step": step}) and (
        state.params["scale"] == like.params["scale"] * step
    ).all()
    assert (tmp_path / "damaged" / "4").is_dir() != unused
    kept.close()


def beside(*others: int) -> Callable[[int], list[int]]:
    """The agreement of two processes, of which the other gives these values."""
    given = iter(others)
    return lambda value: [value, next(given)]


def test_a_checkpoint_that_another_process_cannot_read_is_set_aside_by_all(tmp_path):
    newest, unsound, moved = 4, 0, 4
    kept, like = two_checkpoints(tmp_path, beside(newest, unsound, moved, 2, 1, 1))
    with pytest.warns(UserWarning, match="checkpoint 4 is damaged .*: another process cannot read it"):
        found = kept.restore(like)
    assert found is not None and int(found[0].step) == 2
    assert kept.steps() == [2]
    kept.close()


def test_a_checksum_that_fails_elsewhere_counts_for_all(tmp_path):
    kept, like = two_checkpoints(tmp_path, beside(4, 1, 0, 4, 2, 1, 1))
    with pytest.warns(UserWarning, match="checkpoint 4 is damaged"):
        found = kept.restore(like)
    assert found is not None and int(found[0].step) == 2
    kept.close()


@pytest.mark.parametrize("other", [2, -1])
def test_processes_that_see_different_checkpoints_do_not_begin(tmp_path, other):
    kept, like = two_checkpoints(tmp_path, beside(other))
    with pytest.raises(CheckpointError, match="not the same for all processes"):
        kept.restore(like)
    assert kept.steps() == [2, 4]
    kept.close()
