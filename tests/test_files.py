"""Folders that are written atomically, and what a killed program leaves of them."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qil_jax.cli import export, view
from qil_jax.export import formats
from qil_jax.export.format import Format
from qil_jax.files import CONTENT, DRAFT, MARK, REPLACED, recover, whole_folder
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.programs import ended
from qil_jax.viewer import page

KILLED_AT_EVERY_STEP = """
import os, pathlib, sys
from qil_jax.files import whole_folder
stop = int(sys.argv[2])
calls = 0
def counted(name, function):
    def call(*args, **kwargs):
        global calls
        if calls == stop:
            os.kill(os.getpid(), 9)
        calls += 1
        return function(*args, **kwargs)
    return call
for owner, name in ((os, "rename"), (os, "mkdir"), (os, "rmdir"), (os, "unlink"), (pathlib.Path, "open")):
    setattr(owner, name, counted(name, getattr(owner, name)))
with whole_folder(pathlib.Path(sys.argv[1]), overwrite=True) as draft:
    (draft / "a").write_text("new")
print("done", calls)
"""


@pytest.mark.parametrize("program", ["export", "view"])
def test_a_full_disk_is_named(program, tmp_path, monkeypatch, capsys):
    """A write that fails has no name; what was to be written has."""
    layers = np.zeros((1, 4, 4, 4), np.uint8)
    LayeredImage(layers=layers, names=("a",)).save(tmp_path / "layers")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if program == "export":
        monkeypatch.setitem(formats.WRITERS, Format.ORA, full)
        call, out = export.main, tmp_path / "a.ora"
        words = [str(tmp_path / "layers"), "--to", "ora", "--out", str(out)]
    else:
        monkeypatch.setattr(page, "pieces", full)
        call, out = view.main, tmp_path / "a.html"
        words = [str(tmp_path / "layers"), "--out", str(out)]
    assert ended(call, words) == 2
    assert f"No space left on device: '{out}'" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["layers"]


def tree(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() for f in sorted(folder.rglob("*")) if f.is_file()}


def age(folder: Path) -> None:
    old = time.time() - 3600
    os.utime(folder, (old, old))


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with whole_folder(tmp_path / "deep" / "a") as draft:
        (draft / "x").write_text("1")
        assert not (tmp_path / "deep" / "a").exists()
    assert tree(tmp_path) == {"deep/a/x": "1"}


def test_an_error_leaves_nothing_and_what_was_there(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("old")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "a", overwrite=True) as draft:
        (draft / "x").write_text("new")
        raise RuntimeError
    assert tree(tmp_path) == {"a/x": "old"}


def test_what_exists_is_replaced_only_when_said(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(FileExistsError, match="a exists"), whole_folder(tmp_path / "a"):
        pytest.fail("entered")
    with whole_folder(tmp_path / "a", overwrite=True) as draft:
        (draft / "x").write_text("new")
    assert tree(tmp_path) == {"a/x": "new"}


def test_what_another_program_made_meanwhile_stays(tmp_path):
    with pytest.raises(FileExistsError, match="meanwhile"), whole_folder(tmp_path / "a"):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x").write_text("theirs")
    assert tree(tmp_path) == {"a/x": "theirs"}


@pytest.mark.full
def test_a_kill_at_any_call_loses_nothing(tmp_path):
    endings = []
    for stop in range(100):
        folder = tmp_path / str(stop)
        (folder / "a").mkdir(parents=True)
        (folder / "a" / "a").write_text("old")
        command = [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(folder / "a"), str(stop)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        for left in folder.glob(f".*{DRAFT}"):
            age(left)
        recover(folder)
        assert run.returncode in (0, -signal.SIGKILL), run.stderr
        assert list(tree(folder)) == ["a/a"], (stop, tree(folder))
        endings.append(tree(folder)["a/a"])
        if run.returncode == 0:
            break
    assert len(endings) > 6
    assert endings == sorted(endings, reverse=True)  # old until some call, new from then on
    assert {"old", "new"} == set(endings)


def test_the_mark_is_removed_last(tmp_path, monkeypatch):
    removed = []

    def noted(function):
        return lambda path, **options: (removed.append(Path(path).name), function(path, **options))

    for name in ("unlink", "rmdir"):
        monkeypatch.setattr(os, name, noted(getattr(os, name)))
    (tmp_path / "a" / "deep").mkdir(parents=True)
    for file in ("x", "deep/y"):
        (tmp_path / "a" / file).write_text("old")
    with whole_folder(tmp_path / "a", overwrite=True) as draft:
        (draft / "z").write_text("new")
    assert removed.index(MARK) == len(removed) - 2 and {"x", "y", REPLACED} <= set(removed[:-2]), removed
    assert tree(tmp_path) == {"a/z": "new"}


def test_what_is_not_ours_is_left_alone(tmp_path):
    for name, mark in ((f".a.1{DRAFT}", None), (f".a.2{DRAFT}", "[]"), (f".a.3{DRAFT}", '{"destination": "../b"}')):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "work.txt").write_text("mine")
        if mark is not None:
            (folder / MARK).write_text(mark)
        age(folder)
    (tmp_path / "a.unfinished").mkdir()
    (tmp_path / f".file{DRAFT}").write_text("mine")
    before = tree(tmp_path)
    recover(tmp_path)
    assert tree(tmp_path) == before
    assert (tmp_path / "a.unfinished").is_dir()


def test_a_draft_at_work_is_left_alone(tmp_path):
    with whole_folder(tmp_path / "a") as draft:
        (draft / "x").write_text("1")
        age(draft.parent)
        recover(tmp_path)
        with whole_folder(tmp_path / "b") as other:
            (other / "x").write_text("2")
    assert tree(tmp_path) == {"a/x": "1", "b/x": "2"}


def test_a_draft_just_begun_is_left_alone(tmp_path):
    (tmp_path / f".a.1{DRAFT}").mkdir()
    recover(tmp_path)
    assert (tmp_path / f".a.1{DRAFT}").is_dir()
    age(tmp_path / f".a.1{DRAFT}")
    recover(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_was_moved_aside_comes_back_unless_something_took_its_place(tmp_path):
    for name in ("a", "b"):
        draft = tmp_path / f".{name}.1{DRAFT}"
        (draft / REPLACED).mkdir(parents=True)
        (draft / REPLACED / "x").write_text("old")
        (draft / CONTENT).mkdir()
        (draft / MARK).write_text(json.dumps({"destination": name}))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_text("new")
    recover(tmp_path)
    assert tree(tmp_path) == {"a/x": "old", "b/x": "new"}
