"""`qil convert export` and `qil export-run`: any checkpoint of a run as a checkpoint folder, and what is refused."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from runs import ROOT, QuickRuns, World, saved
from safetensors.numpy import load_file

from qil_jax.cli import convert
from qil_jax.programs import called, ended
from qil_jax.training.saved import SavedParams
from qil_jax.training.state_tree import Weights, checksum
from qil_jax.weights import Checkpoint, Component
from qil_jax.weights.convert import to_orbax
from qil_jax.weights.safetensors_io import ShardedWriter
from qil_jax.weights.values import checkpoint_values

TRAINED = re.compile("image_out|modulation|text_in")
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory) -> Path:
    """A run that trained some of the parameters, with checkpoints of steps 2 and 4 and nothing at its end."""
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert QuickRuns(world, patch).main(folder, {"trainable": TRAINED.pattern}) == 0
    shutil.rmtree(folder / "checkpoint")
    return folder


@pytest.fixture
def copy(run: Path, tmp_path) -> Path:
    """The run as one that may be changed."""
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def export(run: Path, out: Path, *more: str) -> int:
    """The exit status of `qil convert`."""
    return ended(convert.main, ["export", str(run), str(out), *more])


@pytest.mark.parametrize(("step", "ema"), [(2, True), (4, True), (4, False)])
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)], ids=str)
def test_values_are_those_of_the_checkpoint(world: World, run: Path, tmp_path, step, ema, dtype):
    """Bit for bit, or rounded once; what was frozen is the initial checkpoint's."""
    out, more = tmp_path / "out", [] if ema else ["--no-ema"]
    assert export(run, out, "--step", str(step), "--dtype", dtype.name, *more) == 0
    Checkpoint(out).require_sound()
    origin = json.loads((out / "training.json").read_text())
    assert origin == {"stage": "stage1_text_to_rgba", "step": step, "ema": ema}
    file = "transformer/diffusion_pytorch_model.safetensors"
    found, base, state = load_file(out / file), load_file(world.base / file), saved(run, step)
    table = Checkpoint(world.base)[Component.TRANSFORMER].table
    assert found.keys() == {entry.name for entry in table}
    for entry in table:
        value = base[entry.name]
        if TRAINED.search(entry.path):
            tree = Weights.EMA if ema else Weights.PARAMS
            value = state[f"/{tree}/{entry.path.replace('/', '.')}"]
            value = entry.transform.backward(value if entry.block is None else value[entry.block], entry.shape)
            assert not (base[entry.name].any() and np.array_equal(value, base[entry.name]))
        assert found[entry.name].dtype == dtype
        np.testing.assert_array_equal(found[entry.name], value.astype(dtype), err_msg=entry.name)


def test_the_newest_is_the_default(run: Path, tmp_path, capsys):
    assert export(run, tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "training.json").read_text())["step"] == 4
    assert capsys.readouterr().out.startswith("EMA of step 4 in ")


def test_a_start_stored_by_orbax_gives_the_same(world: World, copy: Path, tmp_path):
    to_orbax(world.base, tmp_path / "orbax")
    assert export(copy, tmp_path / "released") == 0
    changed(copy, str(tmp_path / "orbax"))
    assert export(copy, tmp_path / "out") == 0
    assert checkpoint_values(Checkpoint(tmp_path / "out"), ignored) == checkpoint_values(
        Checkpoint(tmp_path / "released"), ignored
    )
    assert not list((tmp_path / "out").rglob("params"))


def ignored(_: int) -> None:
    """A callback that does nothing."""


def changed(run: Path, start: str) -> None:
    """Let a run's experiment name another initial checkpoint."""
    file = run / "experiment.json"
    experiment = json.loads(file.read_text())
    experiment["start"]["checkpoint"] = start
    file.write_text(json.dumps(experiment))


def cut_state(run: Path) -> None:
    """All but the first bytes of every file that holds values: what lies where in them differs from run to run."""
    files = list((run / "checkpoints" / "4" / "state").glob("ocdbt.process_*/d/*"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:64])


def without_position(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "4" / "position")


def only_damaged(run: Path) -> None:
    cut_state(run)
    shutil.rmtree(run / "checkpoints" / "2")


def no_steps(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def no_run(run: Path) -> None:
    (run / "experiment.json").unlink()


def start_elsewhere(run: Path) -> None:
    changed(run, "not/here")


REFUSED: dict[str, tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...]]] = {
    "most of the state": (cut_state, (), ("checkpoints/4 is damaged", "give another step, 2\n")),
    "no position": (without_position, (), ("checkpoints/4 is damaged", "give another step, 2\n")),
    "nothing but a damaged one": (only_damaged, (), ("checkpoints/4 is damaged", "there is no other\n")),
    "a step that is not there": (lambda _: None, ("--step", "3"), ("there is no step 3: give one of 2, 4\n",)),
    "no checkpoint yet": (no_steps, (), ("no checkpoint is there yet",)),
    "no run": (no_run, (), (f"holds no run (experiment.json is missing): give the folder that {called('train')}",)),
    "no start": (start_elsewhere, (), ("not/here: ", "begin where it was trained, so run this there, not in")),
}


@pytest.mark.parametrize(("change", "more", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exported_is_refused(copy: Path, tmp_path, capsys, change, more, says):
    change(copy)
    before = sorted(copy.rglob("*"))
    assert export(copy, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and all(part in error for part in says), error
    assert sorted(copy.rglob("*")) == before and sorted(p.name for p in tmp_path.iterdir()) == ["copy"]


def test_one_changed_bit_is_noticed(run: Path, tmp_path, capsys, monkeypatch):
    plain = SavedParams._read

    def flipped(self: SavedParams, name: str) -> np.ndarray:
        values = plain(self, name).copy()
        values.reshape(-1).view(np.uint32)[-1] ^= 1
        return values

    monkeypatch.setattr(SavedParams, "_read", flipped)
    assert export(run, tmp_path / "out") == 2
    assert "differs from what was saved" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_checksums_do_not_depend_on_pieces(monkeypatch):
    values = np.random.default_rng(0).standard_normal((7, 5, 3)).astype(np.float32)
    whole = checksum(values)
    monkeypatch.setattr("qil_jax.training.state_tree.PIECE_BYTES", 2 * 5 * 3 * 4)
    assert checksum(values) == whole
    assert checksum(values[::-1].copy()) != whole


def test_what_exists_is_left_alone(run: Path, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("kept")
    assert export(run, out) == 2
    assert f"{out} exists: give another folder, or remove it" in capsys.readouterr().err
    assert (out / "precious").read_text() == "kept"


def test_a_file_is_written_of_a_lora_only(run: Path, tmp_path, capsys):
    assert export(run, tmp_path / "lora.safetensors") == 2
    assert "trains no LoRA" in capsys.readouterr().err


def test_an_interrupted_export_leaves_nothing(run: Path, tmp_path, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ShardedWriter, "write", interrupted)
    assert export(run, tmp_path / "out") == 130
    assert "to go on: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


SLOW = """
import sys, time
from qil_jax.training.saved import SavedParams
from qil_jax.cli import convert
def read(*_):
    print("reading", flush=True)
    time.sleep(600)
SavedParams._read = read
convert.main(sys.argv[1:])
"""


@pytest.mark.full
def test_a_killed_export_leaves_nothing_that_stays(run: Path, tmp_path):
    call = [sys.executable, "-c", SLOW, "export", str(run), str(tmp_path / "out")]
    with subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "reading\n"
        child.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    assert export(run, tmp_path / "out") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
