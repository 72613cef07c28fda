"""Memory of the host."""

import ctypes
import sys


def return_freed() -> None:
    """Return memory that was freed to the system.

    glibc keeps it for the threads that freed it: hundreds of megabytes after weights were read, or a large program was
    compiled. Without glibc, nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
