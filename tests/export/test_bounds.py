"""One file cannot take the machine's memory: its whole is measured, and refused before a pixel is decoded."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pptx import Presentation
from pptx.util import Emu

from qil_jax import host_memory
from qil_jax.errors import QilError
from qil_jax.export import bounds, formats, manifest, placed
from qil_jax.export.format import Format
from qil_jax.export.png import encoded
from qil_jax.layers.layered_image import LayeredImage

SIDE = 8
TINY = encoded([np.full((SIDE, SIDE, 4), 9, np.uint8)])[0]


def huge() -> bytes:
    """A short file of many pixels."""
    stream = io.BytesIO()
    Image.new("1", (4096, 4096)).save(stream, "PNG")
    return stream.getvalue()


def archived(file: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


def ora(file: Path, count: int, picture: bytes, depth: int = 0) -> Path:
    layers = "<stack>" * depth + '<layer src="a.png"/>' * count + "</stack>" * depth
    return archived(
        file, {"stack.xml": f'<image w="9" h="9"><stack>{layers}</stack></image>'.encode(), "a.png": picture}
    )


def listed(file: Path, count: int, picture: bytes, depth: int = 0) -> Path:
    entries = [{"name": "a", "file": "a.png"}] * count
    for _ in range(depth):
        entries = [{"name": "g", "file": "a.png", "group": {"left": 0, "top": 0, "layers": entries}}]
    return archived(file, {"manifest.json": json.dumps({"layers": entries}).encode(), "a.png": picture})


def pptx(file: Path, count: int, picture: bytes, depth: int = 0) -> Path:
    presentation = Presentation()
    presentation.slide_width = presentation.slide_height = Emu(96 * 9525)
    shapes = presentation.slides.add_slide(presentation.slide_layouts[6]).shapes
    for _ in range(depth):
        shapes = shapes.add_group_shape().shapes
    for _ in range(count):
        shapes.add_picture(io.BytesIO(picture), Emu(0), Emu(0), Emu(8 * 9525), Emu(8 * 9525))
    presentation.save(str(file))
    return file


KINDS = pytest.mark.parametrize(("suffix", "make"), [("ora", ora), ("zip", listed), ("pptx", pptx)])


@pytest.fixture
def decoding(monkeypatch):
    """Fails the test where a pixel is decoded."""
    for module, name in ((manifest, "read_picture"), (placed, "decoded")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("decoded"))


@KINDS
def test_many_entries_of_one_large_picture_are_refused_before_decoding(tmp_path, suffix, make, decoding):
    with pytest.raises(QilError, match=r"pixels in all; at most 1,073,741,824 are read: scale it down"):
        formats.read(make(tmp_path / f"a.{suffix}", 65, huge()))


@KINDS
def test_what_does_not_fit_into_memory_is_refused_before_decoding(tmp_path, suffix, make, decoding, monkeypatch):
    monkeypatch.setattr(host_memory, "host_bytes", lambda: 1_000)
    with pytest.raises(QilError, match=r"reading its [\d,]+ pixels needs at least .* of memory"):
        formats.read(make(tmp_path / f"a.{suffix}", 3, TINY))


@KINDS
def test_the_members_of_an_archive_are_bounded_together(tmp_path, suffix, make, decoding, monkeypatch):
    monkeypatch.setattr(bounds, "MOST_BYTES", 1_000_000)
    file = make(tmp_path / f"a.{suffix}", 1, TINY)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        for number in range(2):
            archive.writestr(f"more{number}", bytes(600_000))
    with pytest.raises(QilError, match=rf"a.{suffix}: 1,[\d,]+ bytes unpacked; at most 1,000,000 are"):
        formats.read(file)


@KINDS
def test_groups_are_nested_to_a_limit(tmp_path, suffix, make):
    assert formats.read(make(tmp_path / f"a.{suffix}", 1, TINY, depth=3)).depth == 4
    for depth in (bounds.MOST_NESTED + 1, 100):
        with pytest.raises(QilError, match="groups within groups, more than 32 deep"):
            formats.read(make(tmp_path / f"b.{suffix}", 1, TINY, depth=depth))


def test_a_photoshop_document_of_specks_on_a_large_canvas_is_refused(tmp_path, monkeypatch):
    layers = np.zeros((3, 40, 40, 4), np.uint8)
    layers[:, 0, 0] = 255
    formats.write(LayeredImage(layers=layers, names=("a", "b", "c")), tmp_path / "a.psd", Format.PSD)
    monkeypatch.setattr(bounds, "MOST_PIXELS", 4000)
    with pytest.raises(QilError, match=r"a.psd: its layers have 4,800 pixels in all"):
        formats.read(tmp_path / "a.psd")
