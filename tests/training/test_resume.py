"""A run that was cut off, however and wherever, ends with the bits of one that was not. Through train.py itself."""

import itertools
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from runs import GO_ON, World, assert_same_bits, environment, finish, saved, says, stop, two_of
from waiting import HANGS

from qil_jax.training.disk import newest_step
from qil_jax.training.experiment import Precision
from qil_jax.training.stages.kinds import Stage

pytestmark = pytest.mark.full

KILLS = int(os.environ.get("QIL_KILLS", "1"))
"""Kills of a run. The tests make one, for every one is a start of the program; QIL_KILLS=10 makes ten."""
STEPS = 8
SETTINGS = {"steps": STEPS, "checkpoints.every": 3}
"""Each step takes milliseconds, and each save a second."""


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
SOME = {"trainable": "modulation|image_out"}
RUNS = [(Stage.RGBA_VAE, Precision.FP32, {"trainable": "quant_conv|conv_out"})]
RUNS += [(Stage.IMAGE_TO_LAYERS, Precision.BF16, SOME)]
MORE = [(Stage.RGBA_VAE, Precision.FP32, {}), (Stage.IMAGE_TO_LAYERS, Precision.BF16, {})]
MORE += [(Stage.TEXT_TO_RGBA, Precision.BF16, LORA), (Stage.TEXT_TO_LAYERS, Precision.FP32, {})]
MORE += [(Stage.RGBA_VAE, Precision.BF16, {}), (Stage.TEXT_TO_RGBA, Precision.FP32, {})]
MORE += [(Stage.IMAGE_TO_LAYERS, Precision.FP32, changes) for changes in ({}, LORA)]
RUNS += [pytest.param(*run, marks=pytest.mark.slow) for run in MORE]


@pytest.mark.parametrize(("stage", "precision", "changes"), RUNS)
def test_killed_and_terminated_runs_end_like_an_uncut_one(world: World, tmp_path, stage, precision, changes):
    """One run is killed, goes on, is told to end half-way, and goes on to its end."""
    held = world.held(tmp_path, stage, SETTINGS | {"precision": precision} | changes, STEPS // 2)
    result = "lora" if changes is LORA else "checkpoint"
    env, index = environment(world.folder), list(Stage).index(stage)
    uncut, cut = tmp_path / "uncut", tmp_path / "cut"
    finish(held.command(uncut), env)
    wanted = saved(uncut, STEPS)
    assert wanted["/counters/step"] == STEPS

    call = held.command(cut)
    held.hold.touch()
    kill([call], env, seed=index)
    child = subprocess.Popen(call, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    says(child.stdout, "held")
    out = stop(child, [signal.SIGTERM, signal.SIGINT][index % 2], held.hold)
    assert f"{GO_ON}" in out and str(cut) in out
    assert not (cut / result).exists() and newest_step(cut) < STEPS
    finish(call, env)
    assert_same_bits(saved(cut, STEPS), wanted)
    assert (cut / result / "training.json").is_file()


EIGHT = [pytest.param(precision, {}, marks=pytest.mark.slow) for precision in Precision]


@pytest.mark.parametrize(("precision", "changes"), [(Precision.BF16, LORA), *EIGHT])
def test_the_same_on_eight_devices(world: World, tmp_path, precision, changes):
    stage = Stage.IMAGE_TO_LAYERS
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "data.loader.rows": 4, "precision": precision}
    held = world.held(tmp_path, stage, SETTINGS | mesh | changes, STEPS - 1)
    env = environment(world.folder, devices=8)
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
    held = world.held(tmp_path, stage, SETTINGS | SOME | {"mesh.fsdp": 2}, STEPS - 1)
    env = environment(world.folder)
    uncut, killed = tmp_path / "uncut", tmp_path / "killed"
    finish_both(two_of(held.command(uncut)), env)
    held.hold.touch()
    kill(two_of(held.command(killed)), env, seed=5)
    held.hold.unlink()
    finish_both(two_of(held.command(killed)), env)
    assert_same_bits(saved(killed, STEPS), saved(uncut, STEPS))
