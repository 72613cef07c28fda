"""What a run has on disk, and errors of the disk that say where."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKPOINTS = "checkpoints"


@contextmanager
def at(path: Path) -> Iterator[None]:
    """Let an OSError that names no file name this one: a full disk is noticed by writes, which know no name."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        several = error.args[0] if isinstance(error, shutil.Error) else []  # of source, destination and reason
        reasons = dict.fromkeys(str(reason) for _, _, reason in several) or [error.strerror or str(error)]
        raise OSError(f"{path}: {'; '.join(reasons)}") from error


def newest_step(run: Path) -> int | None:
    """The step of the newest checkpoint that is complete; None if there is none."""
    folder = run / CHECKPOINTS
    steps = [int(file.name) for file in folder.iterdir() if file.name.isdecimal()] if folder.is_dir() else []
    return max(steps, default=None)
