"""Round trips: what a format holds is what was given, and what cannot be held or read is refused by name."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pptx import Presentation
from psd_tools import PSDImage
from psd_tools.constants import BlendMode

from qil_jax.errors import QilError
from qil_jax.export import formats
from qil_jax.export.format import Format
from qil_jax.export.pptx import pixel_length
from qil_jax.layers.layer_tree import Group, LayerTree
from qil_jax.layers.layered_image import LayeredImage

EXACT = (Format.PNG, Format.ZIP, Format.ORA)
"""Formats that keep every byte; the others keep what is visible."""
NAMES = ("background", "空の層", 'emoji 🐈 / quote" <b>', "שלום", "x" * 80, "..", "CON", "")


def stack(layers: int, height: int, width: int, seed: int = 0) -> LayeredImage:
    """Noise with soft and hard edges, somewhere on the canvas; one layer in four is empty."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (layers, height, width, 4), np.uint8)
    for i, layer in enumerate(pixels):
        shows = np.zeros((height, width), bool)
        top, left = rng.integers(0, height), rng.integers(0, width)
        shows[top : top + 1 + rng.integers(0, height), left : left + 1 + rng.integers(0, width)] = i % 4 != 2
        layer[~shows, 3] = 0
    names = tuple(NAMES[i % len(NAMES)] for i in range(layers))
    return LayeredImage(layers=pixels, names=names, caption="a caption, «quoted»")


def tree(height: int = 40, width: int = 56) -> LayerTree:
    """A stack whose second layer consists of three layers, one of which is a group; one sticks out of the canvas."""
    inmost = LayerTree.of(stack(2, 9, 11, seed=5))
    group = Group(tree=inmost, left=3, top=2)
    inner = stack(3, 21, 25, seed=4)
    inner.layers[1] = group.put(inmost.layered.composite_8bit(), inner.size)
    outer = stack(3, height, width, seed=3)
    middle = Group(tree=LayerTree(layered=inner, groups={1: group}), left=-5, top=12)
    outer.layers[1] = middle.put(inner.composite_8bit(), outer.size)
    return LayerTree(layered=outer, groups={1: middle})


def visible(layers: np.ndarray) -> np.ndarray:
    return np.where(layers[..., 3:] > 0, layers, 0)


def written(content: LayeredImage | LayerTree, format: Format, folder: Path) -> Path:
    path = folder / ("out" if format is Format.PNG else f"out.{format}")
    formats.write(content, path, format)
    return path


def same(got: LayerTree, expected: LayerTree, format: Format) -> None:
    ours, theirs = got.leaves(), expected.leaves()
    keep = (lambda x: x) if format in EXACT else visible
    np.testing.assert_array_equal(keep(ours.layers), keep(theirs.layers))
    assert shape(got) == shape(expected)


def shape(of: LayerTree) -> list:
    """Names, nested as the groups are."""
    return [[name, shape(of.groups[i].tree)] if i in of.groups else name for i, name in enumerate(of.layered.names)]


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize(("layers", "height", "width"), [(1, 1, 1), (8, 37, 53), (20, 16, 7)])
def test_stacks_come_back(tmp_path, format, layers, height, width):
    content = stack(layers, height, width, seed=layers)
    got = formats.read(written(content, format, tmp_path))
    same(got, LayerTree.of(content), format)
    assert got.layered.size == content.size and not got.groups
    if format in (Format.PNG, Format.ZIP, Format.PPTX):
        assert got.layered.caption == content.caption


@pytest.mark.parametrize("format", Format)
def test_groups_come_back(tmp_path, format):
    got = formats.read(written(tree(), format, tmp_path))
    same(got, tree(), format)
    assert got.depth == 3


@settings(max_examples=15)
@given(st.integers(1, 6), st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**31))
def test_any_stack_comes_back(tmp_path_factory, layers, height, width, seed):
    content = stack(layers, height, width, seed)
    for format in Format:
        same(formats.read(written(content, format, tmp_path_factory.mktemp("any"))), LayerTree.of(content), format)


def test_the_composite_of_psd_tools_is_ours(tmp_path):
    for content in (LayerTree.of(stack(6, 31, 45)), tree()):
        path = written(content, Format.PSD, tmp_path)
        shown = np.asarray(PSDImage.open(path).composite(force=True).convert("RGBA")).astype(int)
        ours = content.leaves().composite_8bit().astype(int)
        shows = np.minimum(shown, ours)[..., 3:] > 0
        assert np.abs((shown - ours) * shows).max() <= 1 and np.abs(shown - ours)[..., 3].max() <= 1
        path.unlink()


def test_ora_is_as_the_format_says(tmp_path):
    content = tree()
    with zipfile.ZipFile(written(content, Format.ORA, tmp_path)) as archive:
        first = archive.infolist()[0]
        assert first.filename == "mimetype" and first.compress_type == zipfile.ZIP_STORED and not first.extra
        assert archive.read("mimetype") == b"image/openraster"
        merged = np.asarray(Image.open(io.BytesIO(archive.read("mergedimage.png")))).astype(int)
        assert np.abs(merged - content.leaves().composite_8bit()).max() <= 1
        assert max(Image.open(io.BytesIO(archive.read("Thumbnails/thumbnail.png"))).size) <= 256


def test_slides_have_the_shape_of_the_canvas(tmp_path):
    for number, (width, height) in enumerate([(56, 40), (1, 1), (6000, 300), (1024, 1024), (9, 5)]):
        layers = np.zeros((1, height, width, 4), np.uint8)
        layers[0, height // 2 :, width // 3 :] = 255
        path = tmp_path / f"{number}.pptx"
        formats.write(LayeredImage(layers=layers, names=("a",)), path, Format.PPTX)
        presentation = Presentation(str(path))
        scale = pixel_length((width, height))
        assert (presentation.slide_width, presentation.slide_height) == (width * scale, height * scale)
        assert min(width, height) * scale >= 914_400 and max(width, height) * scale <= 51_206_400
        (picture,) = presentation.slides[0].shapes
        assert (picture.left, picture.top) == (width // 3 * scale, height // 2 * scale)
        with pytest.raises(FileExistsError):
            formats.write(LayeredImage(layers=layers, names=("a",)), path, Format.PPTX)
    with pytest.raises(QilError, match="57x1 pixels do not fit a slide"):
        layers = np.zeros((1, 1, 57, 4), np.uint8)
        formats.write(LayeredImage(layers=layers, names=("a",)), tmp_path / "long.pptx", Format.PPTX)
    assert not (tmp_path / "long.pptx").exists()


def test_the_manifest_says_what_there_is(tmp_path):
    content = tree()
    fields = json.loads((written(content, Format.PNG, tmp_path) / "manifest.json").read_text())
    assert fields["size"] == [56, 40] and fields["caption"] == content.layered.caption
    for z, entry in enumerate(fields["layers"]):
        alpha = content.layered.layers[z, ..., 3]
        rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else None
        assert (entry["z"], entry["name"], entry["opacity"]) == (z, content.layered.names[z], 1)
        assert entry["box"] == box and (tmp_path / "out" / entry["file"]).is_file()
    group = fields["layers"][1]["group"]
    assert (group["left"], group["top"], group["size"]) == (-5, 12, [25, 21])
    assert [x["name"] for x in group["layers"]] == list(NAMES[:3])


@pytest.mark.parametrize("format", [x for x in Format if x is not Format.PNG])
def test_damaged_files_are_named(tmp_path, format):
    path = written(stack(3, 12, 13), format, tmp_path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    spoilt = [b"", b"no layers", data[: len(data) // 2], data[:30]]
    for _ in range(30):
        noisy = bytearray(data)
        for place in rng.integers(0, len(data), 8):
            noisy[place] = rng.integers(0, 256)
        spoilt.append(bytes(noisy))
    refused = 0
    for content in spoilt:
        path.write_bytes(content)
        try:
            formats.read(path)
        except QilError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused >= 4, "what is cut or empty is refused"


@pytest.mark.parametrize("name", ["missing.psd", "notes.txt", "picture.png"])
def test_what_holds_no_layers_is_refused(tmp_path, name):
    if not name.startswith("missing"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(QilError, match=name):
        formats.read(tmp_path / name)


def test_what_alpha_blending_cannot_say_is_refused(tmp_path):
    path = written(stack(2, 12, 13), Format.ORA, tmp_path)
    for old, new, message in [
        ("svg:src-over", "svg:multiply", "blend mode svg:multiply"),
        ("<image", "<!DOCTYPE a [<!ENTITY b 'c'>]><image", "document type"),
        ('w="13"', 'w="99999999"', "canvas of 99999999x12"),
        ("data/layer000.png", "../../secret.png", "no ../../secret.png in it"),
    ]:
        changed = tmp_path / "changed.ora"
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, "w") as target:
            for info in source.infolist():
                data = source.read(info)
                is_stack = info.filename == "stack.xml"
                target.writestr(info.filename, data.replace(old.encode(), new.encode(), 1) if is_stack else data)
        with pytest.raises(QilError, match=message):
            formats.read(changed)


def test_opacity_and_visibility_of_other_programs(tmp_path):
    content = stack(3, 12, 13, seed=8)
    document = PSDImage.open(written(content, Format.PSD, tmp_path))
    document[0].opacity, document[1].visible = 128, False
    document.save(tmp_path / "changed.psd")
    got = formats.read(tmp_path / "changed.psd").layered
    assert got.names == (content.names[0], content.names[2])
    alpha = content.layers[0, ..., 3]
    np.testing.assert_array_equal(got.layers[0, ..., 3], np.rint(alpha * (128 / 255)))
    document[0].blend_mode = BlendMode.MULTIPLY
    document.save(tmp_path / "multiplied.psd")
    with pytest.raises(QilError, match="layer 'background' has the blend mode multiply"):
        formats.read(tmp_path / "multiplied.psd")
