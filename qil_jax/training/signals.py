"""Coordination of a run's processes, and handling of stop signals."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
import numpy as np

from qil_jax.errors import message
from qil_jax.mesh import gathered
from qil_jax.programs import INTERRUPTED

WITHIN_STEPS = 10
"""Number of steps between agreements of several processes whether to stop."""


class StopSignal:
    """The handler of SIGTERM (preemption) and SIGINT (Ctrl-C) during a run.

    Before the first step and after the last, both raise KeyboardInterrupt. In between, they request that the run saves
    and stops, on which all processes agree at the same step. A further Ctrl-C ends the process immediately, even
    during compilation, since a thread handles it: Python's own handlers would wait for the main thread.
    """

    def __init__(self, last_words: Callable[[], str]):
        """`last_words` returns the line that is printed when a second Ctrl-C ends the process."""
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
        os.close(self._writing)  # the thread ends when its pipe is closed

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if not self._stepping:
            raise KeyboardInterrupt
        self._asked = True

    def _listen(self, reading: int) -> None:
        """Handle signals as they arrive, independently of the main thread."""
        count = 0
        with open(reading, "rb", buffering=0) as stream:
            while number := stream.read(1):
                if number[0] not in (signal.SIGTERM, signal.SIGINT):
                    continue
                count += 1
                if count > 1 and number[0] == signal.SIGINT:
                    os.write(2, message(f"{self._last_words()}\n").encode())
                    for worker in multiprocessing.active_children():
                        worker.kill()
                    os._exit(INTERRUPTED)
                if self._stepping:
                    os.write(2, b"stopping after this step, saving; Ctrl-C ends at once\n")

    def __call__(self, step: int) -> bool:
        """Whether to stop before this step. Several processes communicate only every WITHIN_STEPS steps."""
        self._stepping = True
        if jax.process_count() > 1 and step % WITHIN_STEPS:
            return False
        return self._agreed()

    def finish(self) -> bool:
        """Whether to stop after the last step. All processes must call this function."""
        asked = self._agreed()
        self._stepping = False
        return asked

    def _agreed(self) -> bool:
        """Whether any process received a stop signal."""
        return bool(gathered(np.array(self._asked)).any())
