"""Files and folders that appear whole or not at all, however the program ends."""

import fcntl
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from etils import epath

from qil_jax.errors import QilError

DRAFT = ".draft"
"""How the folder is called beside a destination in which its next content is prepared: .NAME.RANDOM.draft."""
MARK = "qil_jax_draft.json"
"""The file in a draft by which it is known as ours; the program at work on the draft keeps it locked."""
CONTENT = "content"
REPLACED = "replaced"
YOUNG = 60.0
"""Seconds for which a draft without a readable mark may be one that another program has just begun."""


def write_whole(file: epath.Path, data: bytes) -> None:
    """Write a file, and its folder if needed; whoever looks sees all of it or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.parent / f".{file.name}.{uuid.uuid4().hex}"
    try:
        unfinished.write_bytes(data)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def text_beside(file: Path | epath.Path, suffix: str) -> str | None:
    """The text of the file that has the same name but this suffix; None if there is none.

    Raises:
      QilError: if it cannot be read, or is not UTF-8.
    """
    beside = epath.Path(file).with_suffix(suffix)
    try:
        return beside.read_bytes().decode("utf-8-sig") if beside.exists() else None
    except (OSError, ValueError) as error:
        raise QilError(f"{beside.name} cannot be read as UTF-8: {error}") from error


@contextmanager
def whole_folder(destination: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder to fill. It becomes `destination` when the block ends, and is removed if the block raises.

    A program that is killed leaves a draft, which the next call beside it removes; if the kill fell between the two
    renames of a replacement, the folder that was to be replaced is put back. What may be replaced is the caller's to
    decide.

    Raises:
      FileExistsError: if there is something at `destination`, before or after, and it is not to be replaced.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    recover(destination.parent)
    if os.path.lexists(destination) and not overwrite:
        raise FileExistsError(f"{destination} exists: give another folder, or remove it")
    draft = Path(tempfile.mkdtemp(prefix=f".{destination.name[:40]}.", suffix=DRAFT, dir=destination.parent))
    with (draft / MARK).open("w", encoding="utf-8") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)  # the kernel lets go of it however the program ends
        mark.write(json.dumps({"destination": destination.name}))
        mark.flush()
        content = draft / CONTENT
        content.mkdir()
        try:
            yield content
            if overwrite and os.path.lexists(destination):
                destination.rename(draft / REPLACED)
            if os.path.lexists(destination):
                raise FileExistsError(f"{destination} was made meanwhile: nothing of it was replaced")
            content.rename(destination)
        finally:
            _settle(draft, destination)


def recover(folder: Path) -> None:
    """Remove what killed programs left of `whole_folder` in a folder, and put back what they had moved aside.

    Drafts that a living program is at work on stay, and so does everything that does not carry our mark.
    """
    for draft in folder.glob(f".*{DRAFT}"):
        if draft.is_symlink() or not draft.is_dir():
            continue
        try:
            with (draft / MARK).open("r+", encoding="utf-8") as mark:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                name = _marked(mark)
                if name is not None:
                    _settle(draft, folder / name)
                elif os.fstat(mark.fileno()).st_size == 0 and _old(draft):  # killed before the mark was written
                    _settle(draft, None)
        except FileNotFoundError:
            if _old(draft) and not any(draft.iterdir()):  # killed before the mark was made
                draft.rmdir()
        except OSError:
            continue  # at work, or not ours to judge


def _marked(mark: IO[str]) -> str | None:
    """The name of the folder that a draft was to become."""
    try:
        name = json.load(mark)["destination"]
    except (ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) and Path(name).name == name else None


def _settle(draft: Path, destination: Path | None) -> None:
    """Put back what was moved aside if nothing took its place, then remove the draft."""
    replaced = draft / REPLACED
    if destination is not None and os.path.lexists(replaced) and not os.path.lexists(destination):
        replaced.rename(destination)
    shutil.rmtree(draft, ignore_errors=True)


def _old(draft: Path) -> bool:
    return time.time() - draft.stat().st_mtime > YOUNG
