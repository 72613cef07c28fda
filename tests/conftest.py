"""Tests run on eight simulated devices, so that every sharding rule is exercised on a CPU."""

import os
import signal

from hypothesis import settings

FLAG = "--xla_force_host_platform_device_count=8"
if FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}".strip()
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell that starts the tests in the background ignores Ctrl-C for them, and they would pass that on to the programs.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about the machine than about the code.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
