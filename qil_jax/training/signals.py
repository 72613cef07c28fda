"""Other processes of a run, and signals to stop."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
import numpy as np

from qil_jax.programs import INTERRUPTED
from qil_jax.training.experiment import ExperimentError

WITHIN_STEPS = 10
"""Steps after which several processes agree again whether to stop."""


class StopSignal:
    """The reaction of a run to SIGTERM (preemption) and SIGINT (Ctrl-C).

    Before the first step and after the last they raise KeyboardInterrupt. In between the run is asked to save and stop,
    with an answer that all processes give at the same step; a Ctrl-C after that ends the process at once, even while
    it compiles: a thread waits for it, for Python's own handlers run only between steps.
    """

    def __init__(self, last_words: Callable[[], str]):
        """`last_words`: the line to leave when a second Ctrl-C ends the process."""
        self._last_words = last_words
        self._asked = self._stepping = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reading,), daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._writing)  # which ends the thread

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if not self._stepping:
            raise KeyboardInterrupt
        self._asked = True

    def _listen(self, reading: int) -> None:
        """Handle signals as they come, whatever the main thread does."""
        count = 0
        with open(reading, "rb", buffering=0) as stream:
            while number := stream.read(1):
                if number[0] not in (signal.SIGTERM, signal.SIGINT):
                    continue
                count += 1
                if count > 1 and number[0] == signal.SIGINT:
                    os.write(2, f"{self._last_words()}\n".encode())
                    for worker in multiprocessing.active_children():
                        worker.kill()
                    os._exit(INTERRUPTED)
                if self._stepping:
                    os.write(2, b"stopping after this step, saving; Ctrl-C ends at once\n")

    def __call__(self, step: int) -> bool:
        """Whether to stop before this step. Several processes ask each other every WITHIN_STEPS steps."""
        self._stepping = True
        if jax.process_count() > 1 and step % WITHIN_STEPS:
            return False
        return self._agreed()

    def finish(self) -> bool:
        """Whether to stop after the last step, of which all processes must ask."""
        asked = self._agreed()
        self._stepping = False
        return asked

    def _agreed(self) -> bool:
        """Whether any process was asked to stop."""
        return any(gathered(int(self._asked)))


def gathered(value: int) -> list[int]:
    """The values that all processes call this with, in the order of the processes. Every process must call."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.int32(value))).tolist()


def start_distributed(where: str | None) -> None:
    """Join the other processes, before any device is touched.

    Args:
      where: None: there are no others; "auto": the cluster's environment names them (TPU pods, SLURM, GKE);
        "HOST:PORT,COUNT,INDEX": coordinator, number of processes, and which this is.

    Raises:
      ExperimentError: if it is none of these.
    """
    if where is None:
        return
    if where == "auto":
        jax.distributed.initialize()
        return
    address, *numbers = where.split(",")
    if len(numbers) != 2 or not all(n.isdecimal() for n in numbers):
        raise ExperimentError(f"--distributed {where}: give auto, or HOST:PORT,COUNT,INDEX such as 10.0.0.1:8476,4,0")
    count, index = map(int, numbers)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # which only CPUs use
    jax.distributed.initialize(address, count, index)
