"""Devices that are not there: what is said of those that are asked for, and what libtpu says of its own."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from qil_jax import accelerators
from qil_jax.accelerators import ABSENT_TPU, quieten_libtpu

ROOT = Path(__file__).resolve().parents[1]


def environment(**more: str) -> dict[str, str]:
    """Of a program that nobody told which devices to use."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_PLATFORMS", "TPU_"))}
    return kept | {"XLA_FLAGS": ""} | more


@pytest.mark.full
def test_platforms_that_are_not_there_are_named(tmp_path):
    if find_spec("jax_cuda12_plugin"):
        pytest.skip("has CUDA")
    call = [sys.executable, ROOT / "infer.py", ROOT / "docs", "--out", tmp_path / "out"]
    done = subprocess.run(call, env=environment(JAX_PLATFORMS="cuda"), capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: jax cannot use the devices that JAX_PLATFORMS=cuda asks for: set it to cpu")
    assert "Traceback" not in done.stderr


@pytest.mark.full
def test_libtpu_without_a_tpu_says_nothing():
    pytest.importorskip("libtpu")
    if any(Path("/dev").glob("accel*")):
        pytest.skip("has a TPU")
    call = [sys.executable, "-c", "from qil_jax.mesh import single_device_mesh; print(single_device_mesh().size)"]
    env = environment(ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    done = subprocess.run(call, env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.fixture
def told(monkeypatch):
    """What libtpu is told by the environment: nothing at first."""
    for name in ABSENT_TPU:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return lambda: {name: os.environ[name] for name in ABSENT_TPU if name in os.environ}


def test_absent_tpus_are_answered_for(tmp_path, monkeypatch, told):
    monkeypatch.setattr(accelerators, "DEV", tmp_path)
    quieten_libtpu()
    assert told() == ABSENT_TPU


def test_a_tpu_is_left_to_speak_for_itself(tmp_path, monkeypatch, told):
    monkeypatch.setattr(accelerators, "DEV", tmp_path)
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "0").touch()
    quieten_libtpu()
    assert told() == {}


def test_what_the_environment_answers_stays(tmp_path, monkeypatch, told):
    monkeypatch.setattr(accelerators, "DEV", tmp_path)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    quieten_libtpu()
    assert told() == {"TPU_WORKER_HOSTNAMES": "a,b"}
