"""The folder of uploads and results: bytes, time, and what is in use."""

import os
import time
from pathlib import Path

import pytest

from qil_jax.app.storage import LEAST, FullError, Storage


def entry(folder: Path, name: str, age: float, size: int = 3 * LEAST) -> Path:
    """An upload that was last used so many seconds ago; its folder counts too."""
    (folder / name).mkdir()
    (folder / name / "picture.png").write_bytes(bytes(size))
    os.utime(folder / name, (time.time() - age,) * 2)
    return folder / name / "picture.png"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def storage_of(folder: Path, files: int) -> Storage:
    return Storage(folder, most=files * 4 * LEAST, seconds=3600.0)


def test_the_oldest_that_nothing_uses_goes_first(tmp_path):
    files = [entry(tmp_path, name, age) for name, age in (("a", 400), ("b", 300), ("c", 200), ("d", 100))]
    storage = storage_of(tmp_path, 4)
    storage.used = lambda: [str(files[0])]
    storage.touch(str(files[1]))
    storage.reserve(4 * LEAST)
    assert names(tmp_path) == ["a", "b", "d"]
    storage.reserve(4 * LEAST)
    assert names(tmp_path) == ["a", "b"]


def test_what_is_reserved_counts_until_it_is_there(tmp_path):
    storage = storage_of(tmp_path, 2)
    storage.reserve(8 * LEAST)
    with pytest.raises(FullError, match="there is no room, for all 0 MB of this server are in use; try again"):
        storage.reserve(1)
    storage.release(8 * LEAST)
    storage.reserve(1)


def test_what_is_in_use_stays_and_the_upload_is_refused(tmp_path):
    files = [entry(tmp_path, name, 400) for name in ("a", "b")]
    storage = storage_of(tmp_path, 2)
    storage.used = lambda: map(str, files)
    with pytest.raises(FullError):
        storage.reserve(1)
    storage.used = tuple
    storage.reserve(1)


def test_many_small_files_are_counted_too(tmp_path):
    for number in range(20):
        entry(tmp_path, f"{number:02}", 400 - number, size=1)
    storage_of(tmp_path, 5).reserve(1)
    assert names(tmp_path) == [f"{number:02}" for number in range(11, 20)]


def test_a_result_stays_while_it_is_made_and_others_go(tmp_path):
    storage = storage_of(tmp_path, 2)
    entry(tmp_path, "upload", 100)
    with storage.holding(tmp_path / "result"):
        entry(tmp_path, "result", 7200, size=7 * LEAST)
        storage.sweep()
    assert names(tmp_path) == ["result"]
    storage.sweep()
    assert names(tmp_path) == []


def test_an_upload_that_arrives_stays_and_one_that_was_broken_off_goes(tmp_path):
    """An upload is written into a file of the folder, and leaves it there if it never ends."""
    for name, age in (("arriving", 0), ("broken_off", 60)):
        (tmp_path / name).write_bytes(bytes(3 * LEAST))
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    entry(tmp_path, "whole", 30)
    storage_of(tmp_path, 1).reserve(LEAST)
    assert names(tmp_path) == ["arriving"]


def test_what_moves_while_it_is_counted_is_passed_over(tmp_path, monkeypatch):
    """A result appears under its name when it is whole, and its draft is gone then."""
    draft, scandir = entry(tmp_path, "result", 0).parent / "draft", os.scandir
    draft.mkdir()
    monkeypatch.setattr(os, "scandir", lambda path: scandir(f"{path}/gone" if str(path) == str(draft) else path))
    storage_of(tmp_path, 9).reserve(1)
    assert names(tmp_path) == ["result"]


def test_what_is_old_goes_and_what_is_kept_stays(tmp_path):
    entry(tmp_path, "example", 7200)
    storage = storage_of(tmp_path, 9)
    storage.keep()
    used = entry(tmp_path, "used", 7200)
    entry(tmp_path, "old", 7200)
    entry(tmp_path, "young", 60)
    storage.used = lambda: [str(used)]
    storage.sweep()
    assert names(tmp_path) == ["example", "used", "young"]
