"""Reading of users' files, and atomic writing of files and folders.

Whatever lies where a file is to be read, no program waits for it or fills its memory with it. What is written appears
complete or not at all, even if the program is killed.

On an object store a file appears whole by itself. A folder there is a prefix of names that nothing renames at once, so
one of its files is written last, and without that file the folder counts as unfinished.
"""

import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

from etils import epath

from qil_jax.errors import QilError

DRAFT = ".draft"
"""Suffix of the folder beside a destination in which its content is prepared: .NAME.RANDOM.draft."""
MARK = "qil_jax_draft.json"
"""The file that marks a folder as a draft of this module; the program that writes the draft keeps it locked."""
CONTENT = "content"
"""The folder in a draft that becomes the destination; a file has its suffix."""
REPLACED = "replaced"
"""The folder in a draft that was the destination before."""
YOUNG = 60.0
"""Seconds for which a draft without a readable mark is assumed to belong to a program that has just begun it."""
MOST_BYTES = 2 << 30
"""Maximum size of a file that is read as a whole."""
MOST_TEXT = 1 << 24
"""Maximum size of a text file in bytes."""
PIECE = 1 << 16
"""Bytes that are read of files that say that they have none, as those of /proc do."""
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
"""What is no regular file, by its type."""
AnyPath = Path | epath.Path
"""A path of a local disk, or one of an object store, which is an `epath.Path`."""


def is_remote(path: AnyPath | str) -> bool:
    """Whether a path is on an object store, as in gs://bucket/folder."""
    return "://" in str(path)


@contextmanager
def opened(file: AnyPath) -> Iterator[IO[bytes]]:
    """A user's file, opened to be read. Links are followed; pipes, devices, sockets and folders are refused unread.

    Raises:
      OSError: if the file cannot be opened.
      QilError: if there is something else than a file, or the path is none.
    """
    if is_remote(file):
        with epath.Path(file).open("rb") as stream:
            yield stream
        return
    try:
        number = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)  # not to wait for the writer of a pipe
    except ValueError as error:  # a NUL, or a character that no file name has
        raise QilError(f"{str(file)!r}: is no path of a file ({error})") from error
    except OSError as error:
        kind = _kind(file)
        if kind is None:
            raise
        raise QilError(f"{file}: is {kind}: give a file") from error  # a socket, or a device that is not there
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        raise QilError(f"{file}: is {KINDS.get(stat.S_IFMT(mode), 'no file')}: give a file")
    with os.fdopen(number, "rb") as stream:
        yield stream


def _kind(file: AnyPath) -> str | None:
    """What lies at a path that is no regular file; None if it is one, or nothing can be said."""
    try:
        return KINDS.get(stat.S_IFMT(os.stat(file).st_mode))  # noqa: PTH116 (not a method of every path here)
    except OSError:
        return None


def read_file(file: AnyPath, *, most: int = MOST_BYTES) -> bytes:
    """The bytes of a user's file, which are at most `most`.

    Raises:
      OSError: if the file cannot be read.
      QilError: if it is no file, or larger; no more than that is read.
    """
    with opened(file) as stream:
        size = epath.Path(file).stat().length if is_remote(file) else os.fstat(stream.fileno()).st_size
        room = min(max(size, PIECE), most)
        data = b"" if size > most else stream.read(room + 1) or b""
    if size > most or len(data) > room:
        raise QilError(f"{file}: has {max(size, len(data)):,} bytes or more; at most {room:,} are read")
    return data


def read_text(file: AnyPath) -> str:
    """The text of a user's file of at most `MOST_TEXT` bytes in UTF-8, with a byte order mark or without.

    Raises:
      OSError: if the file cannot be read.
      QilError: if it is no file, larger, or no UTF-8.
    """
    try:
        return read_file(file, most=MOST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise QilError(f"{file}: is no text in UTF-8 ({error}): save it as UTF-8") from error


def no_folder(path: Path) -> str:
    """Why a path is no folder of a checkpoint, and what to give instead: for files, and for names of repositories."""
    if path.is_file():
        return f"{path}: is a file; give the folder that holds model_index.json"
    if len(path.parts) == 2 and not path.is_absolute() and not path.parent.exists():
        get = f"hf download {path} --local-dir FOLDER"
        return f"{path}: no such folder; if it is a repository's name, download it ({get}) and give the folder"
    return f"{path}: no such folder; give the one that holds model_index.json"


def write_whole(file: epath.Path, data: bytes) -> None:
    """Write a file atomically, and make its folder if needed."""
    if is_remote(file):
        file.write_bytes(data)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.parent / f".{file.name}.{uuid.uuid4().hex}"
    try:
        unfinished.write_bytes(data)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def text_beside(file: Path | epath.Path, suffix: str) -> str | None:
    """The text of the file with the same name but this suffix; None if there is no such file.

    Raises:
      QilError: if the file cannot be read, or is not UTF-8.
    """
    beside = epath.Path(file).with_suffix(suffix)
    try:
        return read_text(beside) if beside.exists() else None
    except (OSError, QilError) as error:
        raise QilError(f"{beside.name} cannot be read as UTF-8: {error}") from error


@contextmanager
def whole_folder(destination: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder to fill. It becomes `destination` when the block ends, and is removed if the block raises.

    A killed program leaves a draft, which the next call in the same folder removes; if it was killed between the two
    renames of a replacement, the replaced folder is restored. The caller decides what may be replaced.

    Raises:
      FileExistsError: if `destination` exists, before or after the block, and is not to be replaced.
    """
    with _whole(destination, CONTENT, overwrite=overwrite) as content:
        content.mkdir()
        yield content


@contextmanager
def whole_file(destination: Path) -> Iterator[Path]:
    """The path, of the same suffix, of a file to write piece by piece; otherwise as `whole_folder`.

    Raises:
      FileExistsError: if `destination` exists, before or after the block.
    """
    with _whole(destination, CONTENT + destination.suffix, overwrite=False) as content:
        yield content


@contextmanager
def _whole(destination: Path, name: str, *, overwrite: bool) -> Iterator[Path]:
    destination.parent.mkdir(parents=True, exist_ok=True)
    recover(destination.parent)
    if os.path.lexists(destination) and not overwrite:
        raise FileExistsError(f"{destination} exists: give another folder, or remove it")
    draft = Path(tempfile.mkdtemp(prefix=f".{destination.name[:40]}.", suffix=DRAFT, dir=destination.parent))
    with (draft / MARK).open("w", encoding="utf-8") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)  # the kernel releases it however the program ends
        mark.write(json.dumps({"destination": destination.name}))
        mark.flush()
        content = draft / name
        try:
            with _naming(destination):
                yield content
            if overwrite and os.path.lexists(destination):
                destination.rename(draft / REPLACED)
            if os.path.lexists(destination):
                raise FileExistsError(f"{destination} was made meanwhile: nothing of it was replaced")
            content.rename(destination)
        finally:
            _settle(draft, destination)


@contextmanager
def _naming(destination: Path) -> Iterator[None]:
    """Give errors of a write, such as that of a full disk, the path that was to be written."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(destination)) from error


@contextmanager
def uploaded_folder(destination: epath.Path, *, last: str) -> Iterator[Path]:
    """An empty local folder to fill, which is copied to an object store when the block ends.

    The file `last` is copied after all others. A killed program leaves files without it, which the next call replaces.

    Raises:
      FileExistsError: if `destination` has the file `last`.
    """
    if (destination / last).exists():
        raise FileExistsError(f"{destination} exists: give another folder, or remove it")
    with tempfile.TemporaryDirectory() as temporary:
        content = Path(temporary)
        yield content
        files = [file for file in sorted(content.rglob("*")) if file.is_file() and file != content / last]
        for file in [*files, content / last]:
            epath.Path(file).copy(destination / file.relative_to(content).as_posix(), overwrite=True)


def result_folder(destination: AnyPath, *, last: str) -> AbstractContextManager[Path]:
    """An empty folder to fill that becomes `destination`: `uploaded_folder` on an object store, else `whole_folder`."""
    if is_remote(destination):
        return uploaded_folder(epath.Path(destination), last=last)
    return whole_folder(Path(destination))


def recover(folder: Path) -> None:
    """Remove the drafts of `whole_folder` that killed programs left in a folder, and restore what they were replacing.

    Drafts of running programs and folders without a mark of this module stay.
    """
    for draft in folder.glob(f".*{DRAFT}"):
        if draft.is_symlink() or not draft.is_dir():
            continue
        with suppress(OSError):  # locked by a running program, not accessible, or removed meanwhile
            _recover(draft)


def _recover(draft: Path) -> None:
    try:
        with (draft / MARK).open("r+", encoding="utf-8") as mark:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            name = _marked(mark)
            if name is not None:
                _settle(draft, draft.parent / name)
            elif os.fstat(mark.fileno()).st_size == 0 and _old(draft):  # killed before the mark was written
                _settle(draft, None)
    except FileNotFoundError:
        if _old(draft) and not any(draft.iterdir()):  # killed before the mark was made, or after it was removed
            draft.rmdir()


def _marked(mark: IO[str]) -> str | None:
    """The name of the destination of a draft; None if its mark is not readable."""
    if not stat.S_ISREG(os.fstat(mark.fileno()).st_mode):
        return None
    try:
        name = json.loads(mark.read(PIECE))["destination"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) and Path(name).name == name else None


def _settle(draft: Path, destination: Path | None) -> None:
    """Restore the replaced folder if nothing took its place, then remove the draft."""
    replaced = draft / REPLACED
    if destination is not None and os.path.lexists(replaced) and not os.path.lexists(destination):
        replaced.rename(destination)
    with suppress(OSError):  # the next program tries again
        _remove(draft)


def _remove(draft: Path) -> None:
    """Remove a draft, its mark last: without the mark, what a kill leaves would count as someone else's."""
    for entry in draft.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != MARK:
            entry.unlink()
    (draft / MARK).unlink()
    draft.rmdir()


def _old(draft: Path) -> bool:
    return time.time() - draft.stat().st_mtime > YOUNG
