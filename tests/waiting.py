"""What tests share that wait for programs: no outcome depends on how fast the machine is.

A test waits for an event: a line, a file, the end of a process. Limits are there against hanging only.
"""

import importlib.metadata
import os
import socket
import time
from collections.abc import Callable

HANGS = 1800
"""Seconds after which a test gives up what does not happen, far more than anything takes on a busy machine."""
_reserved: list[socket.socket] = []


def until(happened: Callable[[], object]) -> None:
    """Wait for what nothing announces, such as a file of another program."""
    end = time.monotonic() + HANGS
    while not happened():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def free_port() -> int:
    """A port of this host at which nothing answers until a server of the test takes it.

    It stays bound here, so that no other program is given it meanwhile; servers set SO_REUSEADDR, and may take it.
    """
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    _reserved.append(probe)
    return probe.getsockname()[1]


def simulated(devices: int) -> str:
    """XLA_FLAGS of a program on so many simulated devices.

    They wait for one another as long as it takes: XLA ends the process after 40 seconds. Unless programs are optimised,
    the emitters of fused loops stay out, which take half of the compiler's time in jax 0.10; 0.12 has no such choice.
    """
    flags = [f"--xla_force_host_platform_device_count={devices}"]
    flags += [f"--xla_cpu_collective_call_{name}_timeout_seconds={HANGS}" for name in ("terminate", "warn_stuck")]
    has_emitters = importlib.metadata.version("jaxlib").startswith("0.10.")  # XLA ends a process for an unknown flag
    if has_emitters and os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1":
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)
