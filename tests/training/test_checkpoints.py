"""Checkpoints: damage is noticed and passed over, and a full disk costs nothing that is there."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from runs import World, assert_same_bits, command, environment, saved

from qil_jax.mesh import single_device_mesh
from qil_jax.training import checkpoints
from qil_jax.training.checkpoints import CheckpointError
from qil_jax.training.experiment import ExperimentError
from qil_jax.training.loop import Outcome, train
from qil_jax.training.stages import Stage


def go(experiment, run: Path, until: int = 10**9) -> Outcome:
    outcome, _, _ = train(
        experiment, run, single_device_mesh(), stop=lambda step: step >= until, show=lambda step, line: None
    )
    return outcome


@pytest.fixture(scope="module")
def uncut(world: World, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("uncut") / "run"
    assert go(world.experiment(Stage.TEXT_TO_RGBA, {}), run) is Outcome.FINISHED
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


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, lose_a_file, lose_the_position])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(world: World, uncut, tmp_path, damage):
    run = tmp_path / "run"
    experiment = world.experiment(Stage.TEXT_TO_RGBA, {})
    assert go(experiment, run, until=4) is Outcome.STOPPED
    damage(run / "checkpoints" / "4")
    with pytest.warns(UserWarning, match=r"checkpoint 4 is damaged and now lies in .*damaged/4"):
        assert go(experiment, run) is Outcome.FINISHED
    assert (run / "damaged" / "4").is_dir()
    assert_same_bits(saved(run, 6), saved(uncut, 6))


def test_no_sound_checkpoint_is_an_error_not_a_new_start(world: World, tmp_path):
    run = tmp_path / "run"
    experiment = world.experiment(Stage.TEXT_TO_RGBA, {"checkpoints.every": 4})
    assert go(experiment, run, until=4) is Outcome.STOPPED
    cut_short(run / "checkpoints" / "4")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(CheckpointError, match=r"no checkpoint of steps \[4\] can be read"),
    ):
        go(experiment, run)


def test_keep_last_and_keep_every(world: World, tmp_path):
    changes = {"checkpoints.every": 1, "checkpoints.keep_last": 2, "checkpoints.keep_every": 3}
    go(world.experiment(Stage.TEXT_TO_RGBA, changes), tmp_path / "run")
    assert sorted(int(f.name) for f in (tmp_path / "run" / "checkpoints").iterdir()) == [3, 5, 6]


def test_no_room_stops_the_run_before_it_writes(world: World, tmp_path, monkeypatch):
    run = tmp_path / "run"
    experiment = world.experiment(Stage.TEXT_TO_RGBA, {})
    assert go(experiment, run, until=2) is Outcome.STOPPED
    before = saved(run, 2)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"needs .* GB, 0.00 GB are free: make room"):
        go(experiment, run)
    monkeypatch.undo()
    assert_same_bits(saved(run, 2), before)
    assert go(experiment, run) is Outcome.FINISHED


def test_a_disk_that_fills_while_writing(world: World, uncut, tmp_path):
    """Files may grow no further, as on a disk that others fill: the save fails, the run stops, nothing is lost."""
    run = tmp_path / "run"
    experiment = world.experiment(Stage.TEXT_TO_RGBA, {})
    assert go(experiment, run, until=2) is Outcome.STOPPED
    before = saved(run, 2)
    call = command(Stage.TEXT_TO_RGBA, run, world.settings(Stage.TEXT_TO_RGBA, {}))
    limited = ["bash", "-c", 'ulimit -f 20; exec "$@"', "-", *call]
    bounded = {**environment(world.folder), "PYTHONDONTWRITEBYTECODE": "1"}  # else it would leave bytecode cut short
    ended = subprocess.run(limited, env=bounded, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2
    assert re.search(r"^error: .*checkpoints: .* could not be (saved|written)", ended.stderr, re.MULTILINE)
    assert re.search(r"^step 2 is saved; to go on: python train.py ", ended.stderr, re.MULTILINE)
    assert "Traceback" not in ended.stdout + ended.stderr
    assert_same_bits(saved(run, 2), before)
    assert go(experiment, run) is Outcome.FINISHED
    assert_same_bits(saved(run, 6), saved(uncut, 6))


def test_a_run_goes_on_with_its_own_settings_only(world: World, uncut, tmp_path):
    with pytest.raises(ExperimentError, match=r"run with other settings \(steps, optimiser differ"):
        go(world.experiment(Stage.TEXT_TO_RGBA, {"steps": 8, "optimiser.learning_rate": 0.1}), uncut)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ExperimentError, match="holds something that is no run"):
        go(world.experiment(Stage.TEXT_TO_RGBA, {}), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_metrics_of_an_attempt_that_was_lost_are_taken_out(world: World, uncut):
    lines = (uncut / "metrics.jsonl").read_text().splitlines()
    steps = [int(line.split('"step": ')[1].split(",")[0]) for line in lines]
    assert steps == sorted(steps)
    assert np.isfinite(steps).all()
