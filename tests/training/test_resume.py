"""A run that was cut off, however and wherever, ends with the bits of one that was not. Through train.py itself."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import World, assert_same_bits, command, environment, finish, saved, two_of

from qil_jax.training.experiment import Precision
from qil_jax.training.stages.kinds import Stage

pytestmark = pytest.mark.full

KILLS = int(os.environ.get("QIL_KILLS", "1"))
"""Kills of a run. The tests make one, for every one is a start of the program; QIL_KILLS=10 makes ten."""
STEPS = 12


def killed_runs(calls: list[list[str]], env: dict[str, str], run: Path, seed: int) -> int:
    """Start, and kill after a random number of lines and some milliseconds, KILLS times. How many were cut off."""
    rng = np.random.default_rng(seed)
    cut = 0
    for _ in range(KILLS):
        lines, wait = int(rng.integers(1, STEPS // 2)), float(rng.uniform(0, 0.3))
        children = [subprocess.Popen(call, env=env, stdout=subprocess.PIPE, text=True) for call in calls]
        first = children[0].stdout
        assert first is not None
        for _ in range(lines):
            if not first.readline():
                break
        time.sleep(wait)
        for child in children:
            child.kill()
            child.communicate()
        cut += children[0].returncode == -signal.SIGKILL
    return cut


LORA = {"lora.rank": 4, "lora.dropout": 0.2}
RUNS = [(Stage.RGBA_VAE, Precision.FP32, {}), (Stage.TEXT_TO_RGBA, Precision.BF16, LORA)]
RUNS += [(Stage.TEXT_TO_LAYERS, Precision.FP32, {}), (Stage.IMAGE_TO_LAYERS, Precision.BF16, {})]
MORE = [(Stage.RGBA_VAE, Precision.BF16, {}), (Stage.TEXT_TO_RGBA, Precision.FP32, {})]
MORE += [(Stage.IMAGE_TO_LAYERS, Precision.FP32, changes) for changes in ({}, LORA)]
RUNS += [pytest.param(*run, marks=pytest.mark.slow) for run in MORE]


@pytest.mark.parametrize(("stage", "precision", "changes"), RUNS)
def test_killed_and_terminated_runs_end_like_an_uncut_one(world: World, tmp_path, stage, precision, changes):
    settings = world.settings(stage, {"steps": STEPS, "precision": precision} | changes)
    result = "lora" if changes else "checkpoint"
    env = environment(world.folder)
    uncut, killed, ended = (tmp_path / name for name in ("uncut", "killed", "ended"))
    finish(command(stage, uncut, settings), env)
    wanted = saved(uncut, STEPS)
    assert wanted["/counters/step"] == STEPS

    call = command(stage, killed, settings)
    assert killed_runs([call], env, killed, seed=list(Stage).index(stage)) >= 1
    finish(call, env)
    assert_same_bits(saved(killed, STEPS), wanted)

    call = command(stage, ended, settings)
    child = subprocess.Popen(call, env=env, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal([signal.SIGTERM, signal.SIGINT][list(Stage).index(stage) % 2])
    out, _ = child.communicate()
    assert child.returncode == 0
    assert "to go on: python train.py" in out and str(ended) in out
    assert not (ended / result).exists()
    finish(call, env)
    assert_same_bits(saved(ended, STEPS), wanted)
    assert (ended / result / "training.json").is_file()


EIGHT = [pytest.param(precision, {}, marks=pytest.mark.slow) for precision in Precision]


@pytest.mark.parametrize(("precision", "changes"), [(Precision.BF16, LORA), *EIGHT])
def test_the_same_on_eight_devices(world: World, tmp_path, precision, changes):
    stage = Stage.IMAGE_TO_LAYERS
    mesh: dict[str, Any] = changes | {
        "mesh.data": 2,
        "mesh.fsdp": 2,
        "mesh.tensor": 2,
        "data.loader.rows": 4,
        "steps": STEPS,
    }
    mesh["precision"] = precision
    settings, env = world.settings(stage, mesh), environment(world.folder, devices=8)
    uncut, killed = tmp_path / "uncut", tmp_path / "killed"
    finish(command(stage, uncut, settings), env)
    call = command(stage, killed, settings)
    assert killed_runs([call], env, killed, seed=11) >= 1
    finish(call, env)
    assert_same_bits(saved(killed, STEPS), saved(uncut, STEPS))


def two(stage: Stage, run: Path, settings: list[str]) -> list[list[str]]:
    return two_of(command(stage, run, settings))


def finish_both(calls: list[list[str]], env: dict[str, str]) -> None:
    children = [
        subprocess.Popen(c, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in calls
    ]
    outs = [child.communicate(timeout=600)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], "\n".join(outs)


def test_the_same_with_two_processes(world: World, tmp_path):
    stage = Stage.IMAGE_TO_LAYERS
    settings = world.settings(stage, {"mesh.fsdp": 2, "steps": STEPS})
    env = environment(world.folder)
    uncut, killed = tmp_path / "uncut", tmp_path / "killed"
    finish_both(two(stage, uncut, settings), env)
    assert killed_runs(two(stage, killed, settings), env, killed, seed=5) >= 1
    finish_both(two(stage, killed, settings), env)
    assert_same_bits(saved(killed, STEPS), saved(uncut, STEPS))


def test_another_mesh_takes_a_run_over(world: World, tmp_path):
    stage, steps = Stage.IMAGE_TO_LAYERS, 30
    one = world.settings(stage, {"data.loader.rows": 4, "steps": steps, "checkpoints.every": 10})
    many = [*one, "mesh.fsdp=4", "mesh.tensor=2"]
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    finish(command(stage, alone, one), environment(world.folder))
    call = command(stage, moved, one)
    child = subprocess.Popen(call, env=environment(world.folder), stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    while not child.stdout.readline().startswith("step 10 "):
        assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    child.communicate()
    assert child.returncode == 0
    finish(command(stage, moved, many), environment(world.folder, devices=8))
    found, wanted = saved(moved, steps), saved(alone, steps)
    assert str(found["/position"]) == str(wanted["/position"])
    for path in wanted:
        if path.startswith(("/params", "/ema_params")):
            scale = np.abs(wanted[path]).max() or 1.0
            assert np.abs(found[path] - wanted[path]).max() / scale <= 1e-5, path
