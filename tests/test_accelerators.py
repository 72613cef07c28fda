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


def test_a_tpu_is_left_to_speak_for_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerators, "DEV", tmp_path)
    monkeypatch.setattr(os, "environ", {"HOME": "/"})
    quieten_libtpu()
    assert os.environ == {"HOME": "/"} | ABSENT_TPU
    monkeypatch.setattr(os, "environ", {"TPU_WORKER_HOSTNAMES": "a,b"})
    quieten_libtpu()
    assert os.environ == {"TPU_WORKER_HOSTNAMES": "a,b"}
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "0").touch()
    monkeypatch.setattr(os, "environ", {})
    quieten_libtpu()
    assert os.environ == {}
