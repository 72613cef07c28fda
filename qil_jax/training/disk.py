"""The newest checkpoint on disk, and disk errors completed with the path concerned."""

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import logging as absl_logging

CHECKPOINTS = "checkpoints"


@contextmanager
def at(path: Path) -> Iterator[None]:
    """Add `path` to OSErrors of the block that name no file, such as those of writes to a full disk.

    Raises:
      OSError: if the block raises one.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        several = error.args[0] if isinstance(error, shutil.Error) else []  # triples of source, destination and reason
        reasons = dict.fromkeys(str(reason) for _, _, reason in several) or [error.strerror or str(error)]
        raise OSError(f"{path}: {'; '.join(reasons)}") from error


def quiet_late_errors() -> None:
    """Suppress orbax's tracebacks of failed writes, which it also raises, and of writes that end after a failure."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    plain = sys.unraisablehook

    def without_late_writes(unraisable: "sys.UnraisableHookArgs") -> None:
        late = isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)
        if not late:
            plain(unraisable)

    sys.unraisablehook = without_late_writes


def saved_steps(run: Path) -> list[int]:
    """The steps of all checkpoints that are complete, in increasing order."""
    folder = run / CHECKPOINTS
    return sorted(int(file.name) for file in folder.iterdir() if file.name.isdecimal()) if folder.is_dir() else []


def newest_step(run: Path) -> int | None:
    """The step of the newest checkpoint that is complete; None if there is none."""
    return max(saved_steps(run), default=None)
