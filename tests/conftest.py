"""Tests run on eight simulated devices, so that every sharding rule is exercised on a CPU."""

import atexit
import gc
import os
import shutil
import signal
import tempfile

import pytest
from hypothesis import HealthCheck, settings
from waiting import simulated

# Programs of tests are compiled more often than they are run: half the time of all tests goes to optimising them.
# `make test-slow` has them as users have them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

FLAG = simulated(8)
if FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}".strip()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu, with which plans are compiled, would look for a TPU and say so

# What one process of the tests has compiled, the others find: workers, and the programs that they start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="qil-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# A shell that starts the tests in the background ignores Ctrl-C for them, and they would pass that on to the programs.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about the machine than about the code.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

# Importing makes no garbage, but much to search for it.
gc.disable()


def pytest_collection_finish():
    """What all tests import stays, and is not searched again."""
    gc.enable()
    gc.collect()
    gc.freeze()


PARITY = {"torch", "diffusers", "transformers", "peft", "accelerate"}
"""What the extra parity installs."""


class Module(pytest.Module):
    """A module of tests, which skips if it imports what only the extra parity installs and that is not there."""

    def collect(self):
        try:
            return super().collect()
        except self.CollectError as error:
            missing = getattr(error.__cause__, "name", None)
            if missing in PARITY:
                pytest.skip(f"needs {missing}: pip install -e '.[parity]'", allow_module_level=True)
            raise


def pytest_pycollect_makemodule(module_path, parent):
    return Module.from_parent(parent, path=module_path)
