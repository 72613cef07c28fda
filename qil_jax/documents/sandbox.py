"""Calls in a separate process with limits on time and memory: a hang or crash loses one document only."""

import dataclasses
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, TypeVar

from qil_jax.documents.reasons import Dropped, Reason

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessLimits:
    """Limits on the time and memory of one call.

    Attributes:
      seconds: CPU time limit in seconds, rounded up to whole seconds (RLIMIT_CPU); the load of the machine does not
        shorten it.
      patience: wall-clock limit as a multiple of `seconds`, which ends calls that sleep.
      memory: address space limit in bytes, beyond what the process uses at its start (RLIMIT_AS).
    """

    seconds: float = 60.0
    patience: float = 30.0
    memory: int = 4 << 30


class Sandbox:
    """Calls functions in a child process that is replaced when it dies or exceeds a limit. A context manager.

    The standard library's pools hang when a worker dies, and pebble's stalled when it replaced workers under load.
    """

    CALLS = 200
    """Number of calls after which the child is replaced, so that memory leaks of libraries do not accumulate."""

    def __init__(self, limits: ProcessLimits):
        self.limits = limits
        self._child: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._calls = 0

    def __call__(self, function: Callable[..., Result], *args: Any) -> Result:
        """Call a function in the child process and return its result.

        Raises:
          Dropped: if the function raised it, ran out of time or memory, or its process died.
          Exception: any other exception that the function raised.
        """
        pipe = self._ready()
        try:
            pipe.send((function, args))
            clock = self.limits.seconds * self.limits.patience
            if not pipe.poll(clock):
                self.close()
                raise Dropped(Reason.TIME_LIMIT, f"no end after {clock:g} s")
            result, error = pipe.recv()
        except (EOFError, OSError) as broken:
            code = self.close()
            if code == -signal.SIGXCPU:
                raise Dropped(Reason.TIME_LIMIT, f"more than {self.limits.seconds:g} s of CPU time") from broken
            raise Dropped(Reason.CRASHED, f"its process ended with code {code}") from broken
        if isinstance(error, MemoryError):
            self.close()  # the rest of its memory may be fragmented
            raise Dropped(Reason.MEMORY_LIMIT, f"more than {self.limits.memory / 2**30:.2g} GiB") from error
        if error is not None:
            raise error
        return result

    def _ready(self) -> Connection:
        """The pipe to an idle child. Its start takes about a second, which does not count towards the limits."""
        if self._pipe is None or self._calls >= self.CALLS:
            self.close()
            context = get_context("spawn")  # the parent has threads: it must not be forked
            self._pipe, far = context.Pipe()
            self._child = context.Process(target=_serve, args=(far, self.limits), daemon=True)
            self._child.start()
            far.close()
            self._calls = 0
            try:
                self._pipe.recv()
            except EOFError as error:
                raise RuntimeError(f"the child process did not start: code {self.close()}") from error
        self._calls += 1
        return self._pipe

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> int | None:
        """End the child process, if there is one, and return its exit code."""
        child, pipe, self._child, self._pipe = self._child, self._pipe, None, None
        if child is None or pipe is None:
            return None
        pipe.close()
        child.join(1.0)  # it ends by itself unless it is stuck in a call
        child.kill()
        child.join()
        code = child.exitcode
        child.close()
        return code


def _serve(pipe: Connection, limits: ProcessLimits) -> None:
    """Main loop of the child process: execute calls until the pipe is closed."""
    _confine(limits.memory)
    pipe.send("ready")
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        _allow(limits.seconds)  # only now: to receive a function is to import its module
        try:
            answer = function(*args), None
        except Exception as error:
            answer = None, error
        try:
            pipe.send(answer)
        except MemoryError as error:
            pipe.send((None, error))


def _confine(memory: int) -> None:
    """Silence the process, as psd-tools, Pillow and their C libraries print, and limit its memory."""
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(silence, stream.fileno())
    _limit(resource.RLIMIT_AS, _address_space() + memory)
    _limit(resource.RLIMIT_CORE, 0)  # running out of CPU time would write all of that memory to the disk


def _allow(seconds: float) -> None:
    """Limit the further CPU time of this process; the system ends a process that exceeds it."""
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds))


def _limit(kind: int, value: int) -> None:
    """Set the soft limit of a resource, no higher than its hard limit."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _address_space() -> int:
    """Bytes of address space in use by this process; 1 GiB where the system does not report it."""
    try:
        with open("/proc/self/statm") as statm:  # noqa: PTH123 (not a file, an interface of the kernel)
            return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 1 << 30
