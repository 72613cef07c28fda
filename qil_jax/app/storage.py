"""The folder of uploads and results: it stays within a number of bytes and a time, and what is in use stays."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qil_jax.errors import QilError

LEAST = 2**16
"""Bytes that a file or a folder counts at least, so that not many of them fit."""
ARRIVING = 30.0
"""Seconds since its last byte for which an upload counts as arriving; whole ones lie in folders of their own."""


class FullError(QilError):
    """There is no room for an upload, and nothing that may be removed."""


class Storage:
    """A folder whose entries are uploads and results.

    Attributes:
      folder: the folder.
      most: number of bytes that it may hold.
      seconds: time for which entries are kept.
      used: function that gives the paths that are in use.
    """

    def __init__(self, folder: Path, *, most: int, seconds: float):
        self.folder, self.most, self.seconds = folder, most, seconds
        self.used: Callable[[], Iterable[str]] = tuple
        self._lock, self._reserved, self._held = threading.Lock(), 0, set[str]()

    def keep(self) -> None:
        """Keep what is there now until the end: the page's own files."""
        with self._lock:
            self._held |= {entry.name for entry in self.folder.iterdir()}

    @contextmanager
    def holding(self, entry: Path) -> Iterator[None]:
        """Keep an entry that is made within the block; at its end others go, if there is too much."""
        with self._lock:
            self._held.add(entry.name)
        try:
            yield
        finally:
            with self._lock:
                self._remove_until(self.most - self._reserved)
                self._held.discard(entry.name)

    def reserve(self, size: int) -> None:
        """Make room for so much of an upload, by removing what is oldest and not in use, until `release`.

        Raises:
          FullError: if that is not enough.
        """
        with self._lock:
            left = self._remove_until(self.most - self._reserved - size)
            if left + self._reserved + size > self.most:
                raise FullError(
                    f"{size / 2**20:.1f} MB: there is no room, for all {self.most >> 20} MB of this server are in use; "
                    "try again when a decomposition has ended"
                )
            self._reserved += size

    def release(self, size: int) -> None:
        """End a reservation: that part of the upload is in the folder, or never will be."""
        with self._lock:
            self._reserved -= size

    def touch(self, path: str) -> None:
        """Note that an upload is used now."""
        entry = self._entry(path)
        if entry is not None and entry.exists():
            entry.touch()

    def sweep(self) -> None:
        """Remove what is older than `seconds` and not in use."""
        with self._lock:
            for modified, entry in self._unused():
                if time.time() - modified > self.seconds:
                    _remove(entry)

    def _remove_until(self, most: int) -> int:
        """Remove entries, the oldest first, until the others have so many bytes; the bytes that are left."""
        sizes = {entry: _size(entry) for entry in self.folder.iterdir()}
        left = sum(sizes.values())
        for _, entry in self._unused() if left > most else ():
            if left <= most:
                return left
            _remove(entry)
            left -= sizes.get(entry, 0)
        return left

    def _unused(self) -> list[tuple[float, Path]]:
        """Entries that nothing uses, with the times at which they were last used, the oldest first."""
        used = self._held | {entry.name for entry in map(self._entry, self.used()) if entry is not None}
        found = [(_modified(entry), entry) for entry in self.folder.iterdir() if entry.name not in used]
        arriving = time.time() - ARRIVING
        return sorted((modified, entry) for modified, entry in found if modified < arriving or not entry.is_file())

    def _entry(self, path: str) -> Path | None:
        """The entry of the folder in which a path lies."""
        try:
            return self.folder / Path(path).resolve().relative_to(self.folder).parts[0]
        except (ValueError, IndexError):
            return None


def _modified(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(entry: Path) -> int:
    """The bytes of an entry and of all below it; those of a file with several names count for each.

    Results are moved meanwhile, and os.walk passes over what is no longer there.
    """
    size = 0
    below = (Path(folder, name) for folder, folders, files in os.walk(entry) for name in (*folders, *files))
    for file in (entry, *below):
        try:
            size += max(file.stat(follow_symlinks=False).st_size, LEAST)
        except FileNotFoundError:
            continue
    return size


def _remove(entry: Path) -> None:
    shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
