"""A run that was cut off, however and wherever, ends with the bits of one that was not. Through train.py itself."""

import itertools
import os
import signal
import subprocess
import time
from typing import Any

import numpy as np
import pytest
from runs import World, assert_same_bits, command, environment, finish, saved, says, stop, two_of
from waiting import HANGS

from qil_jax.training.experiment import Precision
from qil_jax.training.stages.kinds import Stage

KILLS = int(os.environ.get("QIL_KILLS", "1"))
"""Kills of a run. The tests make one, for every one is a start of the program; QIL_KILLS=10 makes ten."""
STEPS = 12


def kill(calls: list[list[str]], env: dict[str, str], seed: int) -> None:
    """Start, and kill after a random number of lines and some milliseconds, KILLS times."""
    rng = np.random.default_rng(seed)
    for _ in range(KILLS):
        lines, wait = int(rng.integers(1, STEPS // 2)), float(rng.uniform(0, 0.3))
        children = [subprocess.Popen(call, env=env, stdout=subprocess.PIPE, text=True) for call in calls]
        first = children[0].stdout
        assert first is not None
        for line in itertools.islice(first, lines):
            if line == "held\n":
                break
        time.sleep(wait)
        for child in children:
            child.kill()
            child.communicate()
        assert children[0].returncode == -signal.SIGKILL


LORA = {"lora.rank": 4, "lora.dropout": 0.2}
RUNS = [(Stage.RGBA_VAE, Precision.FP32, {}), (Stage.TEXT_TO_RGBA, Precision.BF16, LORA)]
RUNS += [(Stage.TEXT_TO_LAYERS, Precision.FP32, {}), (Stage.IMAGE_TO_LAYERS, Precision.BF16, {})]
MORE = [(Stage.RGBA_VAE, Precision.BF16, {}), (Stage.TEXT_TO_RGBA, Precision.FP32, {})]
MORE += [(Stage.IMAGE_TO_LAYERS, Precision.FP32, changes) for changes in ({}, LORA)]
RUNS += [pytest.param(*run, marks=pytest.mark.slow) for run in MORE]


@pytest.mark.parametrize(("stage", "precision", "changes"), RUNS)
def test_killed_and_terminated_runs_end_like_an_uncut_one(world: World, tmp_path, stage, precision, changes):
    held = world.held(tmp_path, stage, {"steps": STEPS, "precision": precision} | changes, STEPS - 2)
    result = "lora" if changes else "checkpoint"
    env = environment(world.folder)
    uncut, killed, ended = (tmp_path / name for name in ("uncut", "killed", "ended"))
    finish(held.command(uncut), env)
    wanted = saved(uncut, STEPS)
    assert wanted["/counters/step"] == STEPS

    call = held.command(killed)
    held.hold.touch()
    kill([call], env, seed=list(Stage).index(stage))
    held.hold.unlink()
    finish(call, env)
    assert_same_bits(saved(killed, STEPS), wanted)

    call = held.command(ended)
    held.hold.touch()
    child = subprocess.Popen(call, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    says(child.stdout, "step 1 ")
    out = stop(child, [signal.SIGTERM, signal.SIGINT][list(Stage).index(stage) % 2], held.hold)
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
    held, env = world.held(tmp_path, stage, mesh, STEPS - 2), environment(world.folder, devices=8)
    uncut, killed = tmp_path / "uncut", tmp_path / "killed"
    finish(held.command(uncut), env)
    call = held.command(killed)
    held.hold.touch()
    kill([call], env, seed=11)
    held.hold.unlink()
    finish(call, env)
    assert_same_bits(saved(killed, STEPS), saved(uncut, STEPS))


def finish_both(calls: list[list[str]], env: dict[str, str]) -> None:
    children = [
        subprocess.Popen(c, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in calls
    ]
    outs = [child.communicate(timeout=HANGS)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], "\n".join(outs)


def test_the_same_with_two_processes(world: World, tmp_path):
    stage = Stage.IMAGE_TO_LAYERS
    held = world.held(tmp_path, stage, {"mesh.fsdp": 2, "steps": STEPS}, STEPS - 2)
    env = environment(world.folder)
    uncut, killed = tmp_path / "uncut", tmp_path / "killed"
    finish_both(two_of(held.command(uncut)), env)
    held.hold.touch()
    kill(two_of(held.command(killed)), env, seed=5)
    held.hold.unlink()
    finish_both(two_of(held.command(killed)), env)
    assert_same_bits(saved(killed, STEPS), saved(uncut, STEPS))


def test_another_mesh_takes_a_run_over(world: World, tmp_path):
    stage, steps = Stage.IMAGE_TO_LAYERS, 30
    changes = {"data.loader.rows": 4, "steps": steps, "checkpoints.every": 10}
    held, one = world.held(tmp_path, stage, changes, 20), world.settings(stage, changes)
    many = [*one, "mesh.fsdp=4", "mesh.tensor=2"]
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    finish(command(stage, alone, one), environment(world.folder))
    held.hold.touch()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen(held.command(moved), env=environment(world.folder), **pipes)
    says(child.stdout, "step 10 ")
    stop(child, signal.SIGTERM, held.hold)
    finish(command(stage, moved, many), environment(world.folder, devices=8))
    found, wanted = saved(moved, steps), saved(alone, steps)
    assert str(found["/position"]) == str(wanted["/position"])
    for path in wanted:
        if path.startswith(("/params", "/ema_params")):
            scale = np.abs(wanted[path]).max() or 1.0
            assert np.abs(found[path] - wanted[path]).max() / scale <= 1e-5, path
