"""A watchdog that ends a process which has done nothing new for too long, such as one that waits for a lost peer.

RUN/hang/process_INDEX.txt     what the process waited for, and the stacks of its threads; one entry for each hang
"""

import dataclasses
import faulthandler
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from qil_jax.errors import message
from qil_jax.files import AnyPath
from qil_jax.programs import HUNG

FOLDER = "hang"
GRACE = 60.0
"""Maximum number of seconds for which a hanging process waits for the other ones to report their hang, too."""
LAST = 2.0
"""Seconds for which the first process, which coordinates the others, stays after all have reported."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Activity:
    """What the process does, and since when by `time.monotonic`."""

    text: str
    since: float


class Watchdog:
    """The current activity of a process, and a thread that ends the process if none follows within the timeout.

    Used in a `with` statement around a run. The thread needs neither the main thread nor the devices, so it acts while
    compiled code blocks, too. It writes the stacks of all threads to standard error and to the run's folder, says what
    this process and the others have waited for, and ends the process with the status `HUNG`.
    """

    def __init__(
        self,
        timeout: float,
        run: AnyPath,
        *,
        last_words: Callable[[], str] = str,
        end: Callable[[int], None] = os._exit,
    ):
        """Watch nothing yet.

        Args:
          timeout: number of seconds after which an activity counts as a hang; 0: never.
          run: folder of the run.
          last_words: function that returns the last line that is printed.
          end: function that ends the process with a status.
        """
        self.timeout, self._run, self._last_words, self._end = timeout, run, last_words, end
        self._activity = _Activity(text="starting", since=time.monotonic())
        self._index, self._count = 0, 1
        self._before: dict[str, str] = {}
        self._over, self._hung = threading.Event(), threading.Event()

    def now(self, text: str) -> None:
        """Note that an activity begins, which takes the place of the previous one."""
        self._activity = _Activity(text=text, since=time.monotonic())

    @contextmanager
    def doing(self, text: str) -> Iterator[None]:
        """Note an activity for the block; behind it the activity around it begins anew."""
        around = self._activity.text
        self.now(text)
        try:
            yield
        finally:
            self.now(around)

    def known_as(self, index: int, count: int) -> None:
        """Note the index of this process and the number of processes, once they are known."""
        self._index, self._count = index, count
        if self.timeout:
            self._before = {file.name: file.read_text() for file in self._others()}

    def __enter__(self) -> "Watchdog":
        if self.timeout:
            self.now(self._activity.text)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._hung.is_set():  # an error of a lost peer may come while the hang is being reported
            threading.Event().wait()
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.timeout / 10)):
            now, activity = time.monotonic(), self._activity  # in this order: a thread may be kept waiting in between
            waited = now - activity.since
            if waited > self.timeout:
                self._hung.set()
                self._report(activity, waited)
                self._end(HUNG)
                return

    def _report(self, activity: _Activity, waited: float) -> None:
        """Say all that is known. What touches the run's folder may block as well, and is given up after a while."""
        line = f"{self._name()} has waited {waited:.0f} s for: {activity.text}"
        os.write(2, message(f"{line}\n").encode())
        faulthandler.dump_traceback(2, all_threads=True)
        grace = min(GRACE, self.timeout)
        writing = threading.Thread(target=self._try_to_share, args=(line, time.monotonic() + grace), daemon=True)
        writing.start()
        writing.join(2 * grace + LAST)
        for worker in multiprocessing.active_children():
            worker.kill()

    def _name(self) -> str:
        return f"process {self._index} of {self._count}" if self._count > 1 else "the process"

    def _try_to_share(self, line: str, until: float) -> None:
        try:
            self._share(line, until)
        except OSError as error:
            os.write(2, message(f"{self._run / FOLDER}: {error}\n").encode())

    def _share(self, line: str, until: float) -> None:
        """Write this process's file, wait for those of the others, and say what they have waited for."""
        folder = self._run / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"process_{self._index}.txt"
        earlier = file.read_text() if file.exists() else ""
        file.write_text(f"{earlier}{line} ({datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC)\n{_stacks()}\n")
        while len(lines := self._said_by_others()) < self._count - 1 and time.monotonic() < until:
            time.sleep(0.2)
        for other in [*lines, self._last_words()]:
            os.write(2, message(f"{other}\n").encode())
        if self._index == 0 and self._count > 1:
            time.sleep(LAST)

    def _others(self) -> list[AnyPath]:
        """The files of hangs of the other processes."""
        folder = self._run / FOLDER
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        return [file for file in found if file.name != f"process_{self._index}.txt"]

    def _said_by_others(self) -> list[str]:
        """What the other processes have waited for in this attempt, a line of each."""
        texts = {file.name: file.read_text() for file in self._others()}
        added = [text.removeprefix(self._before.get(name, "")) for name, text in texts.items()]
        return [line for text in added for line in text.splitlines()[:1]]


def _stacks() -> str:
    """The stacks of all threads."""
    with tempfile.TemporaryFile() as stream:
        faulthandler.dump_traceback(stream, all_threads=True)
        stream.seek(0)
        return stream.read().decode()
