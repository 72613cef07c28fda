"""Pipes, devices and folders in place of a user's files: each is refused by what it is, and none is waited for."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psd_files
import pytest
from PIL import Image

from qil_jax import files
from qil_jax.cli import build_dataset, edit, view
from qil_jax.errors import QilError
from qil_jax.export import formats
from qil_jax.export.format import Format
from qil_jax.files import read_file, read_text
from qil_jax.inference.describe import read_descriptions
from qil_jax.inference.pictures import find_pictures
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.programs import ended
from qil_jax.records.sources import open_source

LAYERS = LayeredImage(layers=np.full((2, 4, 4, 4), 90, np.uint8), names=("a", "b"))


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


SPECIAL = pytest.mark.parametrize(("make", "kind"), [(pipe, "a pipe"), (endless, "a device"), (folder, "a folder")])
Make = Callable[[Path], None]


def replaced(file: Path, make: Make) -> None:
    file.unlink(missing_ok=True)
    make(file)


@SPECIAL
def test_one_door_refuses_what_is_no_file(tmp_path, make, kind):
    replaced(tmp_path / "a", make)
    for read in (read_file, read_text):
        with pytest.raises(QilError, match=f"a: is {kind}: give a file"):
            read(tmp_path / "a")


def test_one_door_reads_to_a_limit_and_through_links(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(100))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read_file(tmp_path / "link", most=100) == bytes(100)
    with pytest.raises(QilError, match="a: has 100 bytes or more; at most 99 are read"):
        read_file(tmp_path / "a", most=99)
    assert b"MemTotal" in read_file(Path("/proc/meminfo"))  # says that it has no bytes
    monkeypatch.setattr(files, "PIECE", 10)
    with pytest.raises(QilError, match="/proc/meminfo: has 11 bytes or more; at most 10 are read"):
        read_file(Path("/proc/meminfo"))
    with pytest.raises(QilError, match="is no path of a file"):
        read_file(Path("a\0b"))
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "missing")


@SPECIAL
@pytest.mark.parametrize("suffix", ["psd", "ora", "pptx", "zip"])
def test_files_of_layers(tmp_path, suffix, make, kind):
    if make is not folder:  # which is read as a folder of layers
        replaced(tmp_path / f"a.{suffix}", make)
        with pytest.raises(QilError, match=rf"a\.{suffix}: is {kind}"):
            formats.read(tmp_path / f"a.{suffix}")


@SPECIAL
@pytest.mark.parametrize("name", ["000.png", "layered.json", "caption.txt"])
def test_folders_of_layers(tmp_path, name, make, kind):
    LAYERS.save(tmp_path / "a")
    replaced(tmp_path / "a" / name, make)
    with pytest.raises(QilError, match=f"{name}: is {kind}"):
        formats.read(tmp_path / "a")


@SPECIAL
@pytest.mark.parametrize("name", ["manifest.json", "01_a.png"])
def test_exported_folders(tmp_path, name, make, kind):
    formats.write(LAYERS, tmp_path / "a", Format.PNG)
    replaced(tmp_path / "a" / name, make)
    with pytest.raises(QilError, match=f"{name}: is {kind}"):
        formats.read(tmp_path / "a")


@SPECIAL
def test_results_and_their_page(tmp_path, make, kind, capsys):
    LAYERS.save(tmp_path / "a")
    replaced(tmp_path / "a" / "result.json", make)
    words = [str(tmp_path / "a"), "--out", str(tmp_path / "a.html")]
    assert ended(view.main, words) == 2
    assert f"result.json: is {kind}" in capsys.readouterr().err and not (tmp_path / "a.html").exists()


@SPECIAL
def test_records_in_folders(tmp_path, make, kind):
    LAYERS.save(tmp_path / "records" / "0")
    replaced(tmp_path / "records" / "0" / "000.png", make)
    (tmp_path / "records" / "0" / "001.png").unlink()
    with pytest.raises(QilError, match=f"000.png: is {kind}"):
        open_source(tmp_path / "records").metadata()


@SPECIAL
def test_prompts_and_descriptions(tmp_path, make, kind):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    replaced(tmp_path / "a.txt", make)
    (problem,) = find_pictures([tmp_path]).bad
    assert "a.txt" in problem and f"is {kind}" in problem
    replaced(tmp_path / "layers.json", make)
    with pytest.raises(QilError, match=f"layers.json: is {kind}"):
        read_descriptions(tmp_path / "layers.json")


@SPECIAL
def test_edit_scripts(tmp_path, make, kind):
    LAYERS.save(tmp_path / "a")
    replaced(tmp_path / "ops.json", make)
    with pytest.raises(QilError, match=f"ops.json: is {kind}"):
        edit.main([str(tmp_path / "a"), "--script", str(tmp_path / "ops.json"), "--out", str(tmp_path / "b")])


def test_documents_and_their_sidecars(tmp_path):
    source, out = tmp_path / "documents", tmp_path / "out"
    source.mkdir()
    for number, name in enumerate(("good", "lone", "sealed")):
        (source / f"{name}.psd").write_bytes(psd_files.design(100 * number))
    pipe(source / "pipe.psd")
    endless(source / "endless.psd")
    pipe(source / "lone.txt")
    endless(source / "sealed.json")
    assert build_dataset.main([str(source), "--out", str(out), "--runner", "none"]) == 0
    rows = {row["document"]: row for row in json.loads((out / "report.json").read_text())["rows"]}
    assert [name for name, row in rows.items() if row["reason"] is None] == ["good.psd"]
    assert "is a pipe" in rows["pipe.psd"]["detail"] and "is a device" in rows["endless.psd"]["detail"]
    assert "is a pipe" in rows["lone.psd"]["detail"] and "is a device" in rows["sealed.psd"]["detail"]
