"""The edge to the outside: other processes, and the signal to stop."""

import signal
from types import FrameType
from typing import Any

import jax

WITHIN_STEPS = 10
"""Steps between the moments at which several processes agree whether to stop."""


class StopSignal:
    """Turns SIGTERM (preemption) and SIGINT into an answer that all processes give at the same step."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._asked = True

    def __call__(self, step: int) -> bool:
        """Whether to stop before this step. Several processes ask each other every WITHIN_STEPS steps."""
        if jax.process_count() == 1:
            return self._asked
        if step % WITHIN_STEPS:
            return False
        from jax.experimental import multihost_utils

        return bool(multihost_utils.process_allgather(jax.numpy.asarray(self._asked)).any())


def start_distributed(where: str | None) -> None:
    """Join the other processes, before any device is touched.

    Args:
      where: None: there are no others; "auto": as the cluster's environment says (TPU pods, SLURM, GKE);
        "HOST:PORT,COUNT,INDEX": coordinator, number of processes, and which this is.

    Raises:
      ValueError: if it is none of these.
    """
    if where is None:
        return
    if where == "auto":
        jax.distributed.initialize()
        return
    address, *numbers = where.split(",")
    if len(numbers) != 2 or not all(n.isdecimal() for n in numbers):
        raise ValueError(f"--distributed {where}: give auto, or HOST:PORT,COUNT,INDEX such as 10.0.0.1:8476,4,0")
    count, index = map(int, numbers)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # which only CPUs use
    jax.distributed.initialize(address, count, index)
