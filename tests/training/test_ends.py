"""How a run ends before its last step: by Ctrl-C in any of its phases, by a full disk, by an error of our own.

All but one ask `qil train` in this process; what ends a process at once is asked of the real command line.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import GO_ON, ROOT, QuickRuns, World, assert_same_bits, environment, saved
from waiting import HANGS

from qil_jax.errors import QilError
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.loader.loader import Loader
from qil_jax.records import sources
from qil_jax.training import config_file, disk, finish, loop, setup
from qil_jax.training.checkpoints import Checkpoints
from qil_jax.training.disk import newest_step
from qil_jax.training.stages.kinds import Stage


def interrupted(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch, *, call: int = 1) -> None:
    """Ctrl-C when a function is called for the `call`th time, and that once."""
    plain: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def with_interrupt(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*args, **kwargs)

    monkeypatch.setattr(owner, name, with_interrupt)


EARLY = {
    "reading the config": (config_file, "called"),
    "opening data": (sources, "open_source"),
    "loading": (loop, "prepare"),
    "beginning": (setup, "fresh_state"),
}


@pytest.mark.parametrize("where", EARLY.values(), ids=EARLY)
@pytest.mark.full
def test_ctrl_c_before_the_first_step_ends(quick: QuickRuns, tmp_path, monkeypatch, capsys, where):
    run = tmp_path / "run"
    monkeypatch.setattr(quick.world, "prepared", {})  # what an earlier test prepared would not be opened again
    interrupted(*where, monkeypatch)
    assert quick.main(run) == 130
    out, err = capsys.readouterr()
    assert err.startswith(f"interrupted: nothing is saved; {GO_ON} ") and err.count("\n") == 1
    assert str(run) in err and "Traceback" not in out + err
    monkeypatch.undo()


LATER = {
    "stepping": (Loader, "__next__", 3, 3),
    "compiling": (Loader, "__next__", 1, 1),
    "saving": (Checkpoints, "save", 1, 2),
    "saving the last": (Checkpoints, "save", 2, 4),
}


@pytest.mark.parametrize("where", LATER.values(), ids=LATER)
def test_ctrl_c_within_the_steps_saves_first(quick: QuickRuns, tmp_path, monkeypatch, capsys, where):
    run = tmp_path / "run"
    owner, name, call, step = where
    with monkeypatch.context() as patch:
        interrupted(owner, name, patch, call=call)
        assert quick.main(run) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith(f"stopped after step {step}; {GO_ON} ")
    assert "Traceback" not in out + err
    assert newest_step(run) == step and not (run / "checkpoint").exists()
    assert quick.main(run) == 0
    assert (run / "checkpoint" / "training.json").is_file()


def test_ctrl_c_while_exporting_loses_nothing(quick: QuickRuns, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupted(finish, "export_checkpoint", patch)
        assert quick.main(run) == 130
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith(f"interrupted: step 4 is saved; {GO_ON} ")
    assert "Traceback" not in out + err and not (run / "checkpoint").exists()
    assert quick.main(run) == 0
    assert (run / "checkpoint" / "training.json").is_file()


STUCK = """
import hashlib
from pathlib import Path
from qil_jax.training import setup
from qil_jax.training.config_file import load_experiment

def step(*_):
    print("compiling", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # in C for many minutes, as a compilation is

def config():
    setup.make_step = lambda *_, **__: step
    return load_experiment(Path({config!r}), {settings!r})
"""


@pytest.mark.full
def test_a_second_ctrl_c_ends_at_once(world: World, tmp_path):
    """While no line of Python runs, so that Python could not hear of either."""
    run, file = tmp_path / "run", tmp_path / "stuck.py"
    stage = Stage.TEXT_TO_RGBA
    settings = world.settings(stage, {"trainable": "image_out"})
    file.write_text(STUCK.format(config=str(ROOT / "configs" / "demo" / f"{stage}.py"), settings=settings))
    call = [sys.executable, str(ROOT / "train.py"), str(file), "--out", str(run)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(call, env=environment(tmp_path), **pipes) as child:
        assert child.stdout is not None and child.stderr is not None
        patience = threading.Timer(HANGS, child.kill)  # nobody waits for a step that does not end
        patience.start()
        try:
            assert child.stdout.readline() == "compiling\n"
            child.send_signal(signal.SIGINT)
            while line := child.stderr.readline():  # a warning of a library may stand before
                if line == "stopping after this step, saving; Ctrl-C ends at once\n":
                    break
            child.send_signal(signal.SIGINT)
            last_words = child.stderr.read()
            assert child.wait() == 130
        finally:
            patience.cancel()
            child.kill()
    assert last_words == f"ended: nothing is saved; {GO_ON} {file} --out {run}\n"


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """As on a full disk, a write beyond it fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def stopped_after_two(quick: QuickRuns, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupted(Loader, "__next__", patch, call=2)
        assert quick.main(run) == 0


def assert_disk_error_said(capsys: pytest.CaptureFixture[str], file: Path, step: int) -> None:
    """Path, what is saved, and the command; nothing else."""
    out, err = capsys.readouterr()
    error, standing = err.splitlines()[-2:]
    assert error.startswith("error: ") and str(file) in error and "File too large" in error
    assert standing.startswith(f"step {step} is saved; {GO_ON} ") and str(file.parent) in standing
    assert "Traceback" not in out + err


@pytest.mark.parametrize("room", [10, -10], ids=["for no line more", "not for those that are there"])
@pytest.mark.full
def test_no_room_for_metrics(quick: QuickRuns, tmp_path, monkeypatch, capsys, room):
    run = tmp_path / "run"
    metrics = run / "metrics.jsonl"
    stopped_after_two(quick, run, monkeypatch)
    with metrics.open("a") as stream:
        stream.write(json.dumps({"step": 2, "note": "x" * 2**22}) + "\n")
    before, kept = saved(run, 2), metrics.read_bytes()
    capsys.readouterr()
    with files_no_longer_than(len(kept) + room):
        assert quick.main(run) == 2
    assert_disk_error_said(capsys, metrics, 2)
    assert metrics.read_bytes()[: len(kept)] == kept
    assert_same_bits(saved(run, 2), before)
    assert quick.main(run) == 0


@pytest.mark.full
def test_no_room_for_the_exported_checkpoint(quick: QuickRuns, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupted(Checkpoints, "save", patch, call=2)
        assert quick.main(run) == 0
    before = saved(run, 4)
    capsys.readouterr()
    with files_no_longer_than(2**15):
        assert quick.main(run) == 2
    assert_disk_error_said(capsys, run / "checkpoint", 4)
    assert not (run / "checkpoint").exists()
    assert_same_bits(saved(run, 4), before)
    assert quick.main(run) == 0
    assert (run / "checkpoint" / "training.json").is_file()


@pytest.mark.full
def test_no_room_for_the_state(quick: QuickRuns, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    stopped_after_two(quick, run, monkeypatch)
    before = saved(run, 2)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        usage = disk.shutil.disk_usage(tmp_path)._replace(free=1000)
        patch.setattr(disk.shutil, "disk_usage", lambda path: usage)
        assert quick.main(run) == 2
    error, standing = capsys.readouterr().err.splitlines()
    assert str(run / "checkpoints") in error and "0.00 GB are free: make room" in error
    assert standing.startswith(f"step 2 is saved; {GO_ON} ")
    assert_same_bits(saved(run, 2), before)
    assert quick.main(run) == 0


FAULTS = {
    "of numpy's shapes": (lambda: np.zeros(3) + np.zeros(4), ValueError, "could not be broadcast"),
    "of jax's shapes": (lambda: jnp.zeros(3) + jnp.zeros(4), TypeError, "incompatible shapes"),
    "of jax's sizes": (lambda: jnp.zeros(3).reshape(2, 2), TypeError, "cannot reshape array"),
}


@pytest.mark.parametrize(("work", "error", "says"), FAULTS.values(), ids=FAULTS)
def test_an_error_of_ours_shows_its_traceback(quick: QuickRuns, tmp_path, monkeypatch, capsys, work, error, says):
    """Shape errors are ValueErrors or TypeErrors too, as refusals are, but no user can put them right."""

    def broken(*_: object, **__: object) -> Callable[..., Any]:
        return jax.jit(lambda *_: work())

    monkeypatch.setattr(setup, "make_step", broken)
    with pytest.raises(error, match=says) as caught:
        quick.main(tmp_path / "run")
    assert not isinstance(caught.value, QilError)
    assert "error: " not in capsys.readouterr().err


@pytest.mark.full
def test_a_record_that_cannot_be_read_is_named(quick: QuickRuns, tmp_path, capsys):
    folder = tmp_path / "records"
    for i in range(4):
        layers = np.random.default_rng(i).integers(0, 256, (2, 32, 32, 4), np.uint8)
        LayeredImage(layers=layers, names=("", ""), caption="noise").save(folder / str(i))
        Image.new("RGBA", (16, 16)).save(folder / str(i) / "001.png")
    assert quick.main(tmp_path / "run", {"data.sources": f'["{folder}"]'}) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {folder}/") and "cannot be read: " in err and "different sizes" in err
    assert "Traceback" not in err


@pytest.mark.full
def test_time_goes_to_what_is_slow(quick: QuickRuns, tmp_path, monkeypatch):
    """A slow loader and a slow step, with no line of metrics in between at which the host waits for the devices."""
    changes = {"steps": 6, "log_every": 6, "checkpoints.every": 6}
    plain = Loader.__next__

    def slowly(self: Loader) -> Any:
        time.sleep(1)
        return plain(self)

    quick.slowly = lambda: time.sleep(1)
    assert quick.main(tmp_path / "step", changes) == 0
    quick.slowly = None
    monkeypatch.setattr(Loader, "__next__", slowly)
    assert quick.main(tmp_path / "loader", changes) == 0
    lines = {name: (tmp_path / name / "metrics.jsonl").read_text() for name in ("step", "loader")}
    step, loader = (json.loads(text.splitlines()[-1]) for text in lines.values())
    assert step["time/step"] > step["time/input"]
    assert loader["time/input"] > loader["time/step"]
    assert step["goodput"] == step["time/step"]
