"""The newest checkpoint on disk, and disk errors completed with the path concerned."""

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import logging as absl_logging
from etils import epath

from qil_jax.errors import QilError
from qil_jax.extras import require
from qil_jax.files import AnyPath, is_remote

CHECKPOINTS = "checkpoints"
COMMITTED = "commit_success.txt"
"""The file that orbax writes last into a checkpoint on an object store."""


@contextmanager
def at(path: AnyPath) -> Iterator[None]:
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


def run_folder(text: str) -> AnyPath:
    """The path of a run's folder on a local disk, or on Google Cloud Storage if it begins with gs://.

    Raises:
      QilError: if it is on another object store, or the package that writes to the store is not installed.
    """
    if not is_remote(text):
        return Path(text)
    if not text.startswith("gs://"):
        raise QilError(f"{text}: give a folder of a local disk, or one that begins with gs://")
    require(text, "gcsfs")
    import fsspec.config

    # Other processes and orbax write there, too.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(text)


def saved_steps(run: AnyPath) -> list[int]:
    """The steps of all checkpoints that are complete, in increasing order."""
    folder = run / CHECKPOINTS
    found = [file for file in folder.iterdir() if file.name.isdecimal()] if folder.is_dir() else []
    return sorted(int(file.name) for file in found if not is_remote(run) or (file / COMMITTED).exists())


def newest_step(run: AnyPath) -> int | None:
    """The step of the newest checkpoint that is complete; None if there is none."""
    return max(saved_steps(run), default=None)


def move_folder(folder: AnyPath, destination: AnyPath) -> None:
    """Move a folder to a place that does not exist yet."""
    if is_remote(folder):
        import fsspec

        fsspec.filesystem("gs").mv(str(folder), str(destination), recursive=True)
    else:
        Path(destination).parent.mkdir(parents=True, exist_ok=True)
        Path(folder).rename(destination)


def free_bytes(folder: AnyPath) -> int | None:
    """Free bytes on the disk of a folder, which need not exist yet; None on an object store, which has no limit."""
    if is_remote(folder):
        return None
    folder = Path(folder)
    there = next(above for above in (folder.absolute(), *folder.absolute().parents) if above.exists())
    return shutil.disk_usage(there).free


def absolute(path: AnyPath) -> AnyPath:
    """The path from the root and without links and `..`, for libraries that ask for it."""
    return path if is_remote(path) else Path(path).resolve()
