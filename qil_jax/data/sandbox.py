"""A process of its own for what may hang, die or eat all memory: one document is lost then, never the run."""

import dataclasses
import os
import sys
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from multiprocessing import get_context
from types import TracebackType
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from qil_jax.data.reasons import Dropped, Reason

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessLimits:
    """What one call may take: seconds on the clock, and bytes of memory beyond what the process starts with.

    Memory is limited by the system (RLIMIT_AS), so on Linux and macOS only.
    """

    seconds: float = 60.0
    memory: int = 4 << 30


class Sandbox:
    """Calls functions in a child process that is replaced whenever it breaks. Use as a context manager."""

    def __init__(self, limits: ProcessLimits):
        self.limits = limits
        context = get_context("spawn")  # the parent has threads: it must not be forked
        self._pool = ProcessPool(
            max_workers=1, max_tasks=200, initializer=_confine, initargs=(limits.memory,), context=context
        )

    def __call__(self, function: Callable[..., Result], *args: Any) -> Result:
        """The function's result.

        Raises:
          Dropped: the function did, or it ran out of time or memory, or its process died.
        """
        future = self._pool.schedule(function, args=args, timeout=self.limits.seconds)
        try:
            return future.result()
        except FutureTimeoutError as error:
            raise Dropped(Reason.TIME_LIMIT, f"more than {self.limits.seconds:g} s") from error
        except ProcessExpired as error:
            raise Dropped(Reason.CRASHED, f"its process ended with code {error.exitcode}") from error
        except MemoryError as error:
            raise Dropped(Reason.MEMORY_LIMIT, f"more than {self.limits.memory / 2**30:.2g} GiB") from error

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child process."""
        self._pool.stop()
        self._pool.join()


def _confine(memory: int) -> None:
    """Make the process silent and bounded. Documents print through psd-tools, Pillow and their C libraries."""
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(silence, stream.fileno())
    if sys.platform == "win32":
        return
    import resource

    taken = _address_space()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory, hard))


def _address_space() -> int:
    """Bytes of address space that this process has now; 1 GiB where the system does not say."""
    try:
        with open("/proc/self/statm") as statm:  # noqa: PTH123 (not a file, a question to the kernel)
            return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 1 << 30
