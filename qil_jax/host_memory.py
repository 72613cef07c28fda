"""Memory of the host."""

import ctypes
import os
import sys
from pathlib import Path

from qil_jax.errors import QilError

CGROUP = Path("/sys/fs/cgroup/memory.max")


def host_bytes() -> int:
    """Bytes of memory of this host, or of the container in which the program runs."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else "max"
    return min(total, int(limit)) if limit.isdecimal() else total


def require_memory(count: int, what: str, fix: str) -> None:
    """Refuse work that takes more than the host's memory.

    Args:
      count: lower bound of its bytes.
      what: what takes them, the subject of the message.
      fix: what to do about it.

    Raises:
      QilError: with the required and the available memory.
    """
    there = host_bytes()
    if count > there:
        raise QilError(
            f"{what} needs at least {gigabytes(count)} of memory, this machine has {gigabytes(there)}: {fix}"
        )


def gigabytes(count: int) -> str:
    """A number of bytes as messages give it."""
    return f"{count / 1e9:,.1f} GB"


def return_freed() -> None:
    """Return memory that was freed to the system.

    glibc keeps it for the threads that freed it: hundreds of megabytes after weights were read, or a large program was
    compiled. Without glibc, nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
