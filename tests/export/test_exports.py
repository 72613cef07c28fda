"""What is written is what was given: PNGs, PSD and sheet read back by other libraries."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from psd_tools import PSDImage

from qil_jax.errors import QilError
from qil_jax.export.names import safe_name
from qil_jax.export.png import write_pngs
from qil_jax.export.psd import read_psd, write_psd
from qil_jax.export.result import (
    ResultError,
    read_record,
    read_result,
    recomposition_psnr,
    require_replaceable,
    write_result,
)
from qil_jax.export.sheet import write_sheet
from qil_jax.layers.layer_tree import Group, LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.visibility import visible_box

NAMES = ("background", "空の層", 'emoji 🐈 / quote"', "x" * 300)


def sample(height: int = 37, width: int = 53) -> LayeredImage:
    """Opaque, empty, a soft blob away from the borders, and a single pixel in the last corner."""
    random = np.random.default_rng(3)
    layers = random.integers(0, 256, (4, height, width, 4), np.uint8)
    layers[0, ..., 3] = 255
    layers[1, ..., 3] = 0
    layers[2, ..., 3] = 0
    layers[2, 5:20, 11:30, 3] = random.integers(1, 256, (15, 19))
    layers[3, ..., 3] = 0
    layers[3, -1, -1, 3] = 7
    return LayeredImage(layers=layers, names=NAMES)


def test_pngs_hold_every_bit(tmp_path):
    layered = sample()
    files = write_pngs(layered, tmp_path)
    assert [f.name[:3] for f in files] == ["01_", "02_", "03_", "04_"]
    for file, layer in zip(files, layered.layers, strict=True):
        with Image.open(file) as image:
            assert image.mode == "RGBA"
            np.testing.assert_array_equal(np.asarray(image), layer)
    with pytest.raises(FileExistsError):
        write_pngs(layered, tmp_path)


def test_psd_reads_back(tmp_path):
    layered = sample()
    write_psd(layered, tmp_path / "a.psd")
    document = PSDImage.open(tmp_path / "a.psd")
    assert (document.width, document.height) == layered.size
    assert document.color_mode.name == "RGB" and document.channels == 4
    assert [layer.name for layer in document] == [name[:255] for name in NAMES]
    for layer, pixels in zip(document, layered.layers, strict=True):
        left, top, right, bottom = visible_box(pixels[..., 3] > 0) or (0, 0, 1, 1)
        assert layer.is_visible() and layer.opacity == 255 and layer.blend_mode.name == "NORMAL"
        assert layer.bbox == (left, top, right, bottom)
        np.testing.assert_array_equal(np.asarray(layer.topil()), pixels[top:bottom, left:right])
    assert document[1].bbox == (0, 0, 1, 1), "an empty layer stays a layer"
    assert document[2].bbox == (11, 5, 30, 20), "boxes are tight"
    assert document[3].bbox == (52, 36, 53, 37)


def test_psd_preview_is_our_composite(tmp_path):
    layered = sample()
    layered.layers[0, :10, :, 3] = 90  # a preview with transparency
    write_psd(layered, tmp_path / "a.psd")
    document = PSDImage.open(tmp_path / "a.psd")
    expected = layered.composite_8bit().astype(int)
    assert expected[..., 3].min() == 90
    over = lambda x: x[..., :3] * x[..., 3:] / 255
    for shown in (document.topil(), document.composite(force=True)):
        pixels = np.asarray(shown.convert("RGBA")).astype(int)
        assert np.abs(pixels[..., 3] - expected[..., 3]).max() <= 1
        assert np.abs(over(pixels) - over(expected)).max() <= 2
    assert document.topil().mode == "RGBA"


@pytest.mark.parametrize("shape", [(1, 1, 1), (20, 3, 500), (2, 700, 2)])
def test_psd_of_odd_shapes(tmp_path, shape):
    layers = np.random.default_rng(0).integers(0, 256, (*shape, 4), np.uint8)
    write_psd(LayeredImage(layers=layers, names=tuple(map(str, range(len(layers))))), tmp_path / "a.psd")
    assert len(list(PSDImage.open(tmp_path / "a.psd"))) == len(layers)


def test_psd_refusals(tmp_path):
    (tmp_path / "a.psd").write_text("mine")
    with pytest.raises(FileExistsError):
        write_psd(sample(), tmp_path / "a.psd")
    assert (tmp_path / "a.psd").read_text() == "mine"
    wide = LayeredImage(layers=np.zeros((1, 1, 30_001, 4), np.uint8), names=("wide",))
    with pytest.raises(ValueError, match="do not fit a PSD"):
        write_psd(wide, tmp_path / "b.psd")


def test_names_are_safe_everywhere():
    assert safe_name("Layer 1") == "Layer_1"
    assert safe_name("空の層") == "空の層"
    for name in ("", "...", "../../etc/passwd", "a/b\\c:d", "nul", "COM1.txt", "x" * 500, "é" * 80, "🐈"):
        safe = safe_name(name)
        assert safe and len(safe.encode()) <= 60
        assert not set(safe) & set('/\\:*?"<>| ')
        assert not safe.startswith(".") and safe.lower() not in ("nul", "com1.txt")


def test_sheet_shows_input_layers_and_recomposition(tmp_path):
    layered = sample()
    write_sheet(layered, layered.layers[0], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    times = 320 // 53  # every pixel of so small a picture is a square
    first = pixels[12 : 12 + 37 * times, 12 : 12 + 53 * times]
    enlarged = layered.layers[0][..., :3].repeat(times, axis=0).repeat(times, axis=1)
    np.testing.assert_array_equal(first, enlarged)
    assert pixels.shape[0] * pixels.shape[1] >= 6 * enlarged.shape[0] * enlarged.shape[1]
    with pytest.raises(FileExistsError):
        write_sheet(layered, layered.layers[0], tmp_path / "sheet.png")


def test_result_is_whole_or_absent(tmp_path, monkeypatch):
    layered, folder = sample(), tmp_path / "out" / "cat"
    psnr = write_result(folder, layered, layered.composite_8bit(), {"seed": 1})
    record = read_record(folder)
    assert record is not None
    assert math.isinf(psnr) and record["recomposition_exact"] and record["recomposition_psnr_db"] is None
    assert record["seed"] == 1 and record["size"] == [53, 37]
    assert [entry["name"] for entry in record["layers"]] == list(NAMES)
    assert all((folder / entry["file"]).is_file() for entry in record["layers"])
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(FileExistsError, match="cat exists"):
        write_result(folder, layered, layered.layers[0], {})
    monkeypatch.setattr("qil_jax.export.result.write_sheet", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_result(folder, layered, layered.layers[0], {}, overwrite=True)
    assert sorted(p.name for p in folder.iterdir()) == before
    assert json.loads((folder / "result.json").read_text())["seed"] == 1
    assert [p.name for p in folder.parent.iterdir()] == ["cat"]


def small_tree() -> LayerTree:
    """The sample, whose third layer is a group of two, of which one is a group whose canvas sticks out."""
    layered, rng = sample(), np.random.default_rng(5)
    inner = LayeredImage(layers=rng.integers(0, 256, (2, 12, 10, 4), np.uint8), names=("öben", "../out"))
    outer = LayeredImage(layers=rng.integers(0, 256, (2, 15, 19, 4), np.uint8), names=("left", "right"))
    tree = LayerTree(layered=outer, groups={1: Group(tree=LayerTree(layered=inner), left=-4, top=9)})
    tree = LayerTree(layered=layered, groups={2: Group(tree=tree, left=11, top=5)})
    return tree.with_leaves(tree.leaves().layers)


def test_a_tree_becomes_groups_of_a_psd(tmp_path):
    tree = small_tree()
    write_psd(tree, tmp_path / "a.psd")
    document = PSDImage.open(tmp_path / "a.psd")
    assert [layer.is_group() for layer in document] == [False, False, True, False]
    group = document[2]
    assert (group.name, [layer.name for layer in group]) == (NAMES[2], ["left", "right"])
    assert [layer.name for layer in group[1]] == ["öben", "../out"] and group[1][0].offset == (11, 5 + 9)  # cut
    inner = tree.groups[2].tree.groups[1].tree.layered.layers[0]
    np.testing.assert_array_equal(np.asarray(group[1][0].topil()), inner[:6, 4:])
    ours = tree.leaves().composite_8bit().astype(int)
    for shown in (document.topil(), document.composite(force=True)):
        pixels = np.asarray(shown.convert("RGBA")).astype(int)
        assert np.abs(pixels - ours)[ours[..., 3] > 128].max() <= 2 and np.abs(pixels - ours)[..., 3].max() <= 1


def test_a_tree_becomes_folders_and_its_result_is_checked(tmp_path):
    tree, folder = small_tree(), tmp_path / "cat"
    write_result(folder, tree, tree.leaves().composite_8bit(), {})
    record = read_result(folder)
    assert record is not None and record["recomposition_exact"]
    group = record["layers"][2]
    assert group["group"]["left"] == 11 and group["group"]["size"] == [19, 15]
    innermost = group["group"]["layers"][1]["group"]["layers"][1]
    assert innermost["name"] == "../out" and innermost["file"].startswith(
        group["file"].removesuffix(".png") + "/02_right/"
    )
    with Image.open(folder / innermost["file"]) as image:
        np.testing.assert_array_equal(np.asarray(image), tree.groups[2].tree.groups[1].tree.layered.layers[1])
    require_replaceable(folder)
    (folder / innermost["file"]).with_name("mine.png").write_bytes(b"")
    with pytest.raises(ResultError, match=r"also holds .*02_right/mine\.png, which would be lost"):
        require_replaceable(folder)
    (folder / innermost["file"]).write_bytes(b"")
    with pytest.raises(ResultError, match="was altered"):
        read_result(folder)


def test_psnr_by_hand():
    layers = np.full((1, 10, 10, 4), 255, np.uint8)
    original = layers[0].copy()
    original[..., :3] = 254
    layered = LayeredImage(layers=layers, names=("white",))
    assert recomposition_psnr(layered, original) == pytest.approx(20 * math.log10(255))
    original[..., 3] = 0  # clear: white shows through, whatever the colour
    assert math.isinf(recomposition_psnr(layered, original))


def test_a_document_with_one_channel_twice_is_refused(tmp_path):
    """Damage that has no checksum: which of the two counts, programs decide differently."""
    layers = np.random.default_rng(0).integers(1, 256, (2, 6, 5, 4), np.uint8)
    write_psd(LayeredImage(layers=layers, names=("a", "b")), tmp_path / "a.psd")
    document = PSDImage.open(tmp_path / "a.psd")
    document[1]._record.channel_info[0].id = document[1]._record.channel_info[1].id
    with (tmp_path / "b.psd").open("wb") as stream:
        document._record.write(stream)
    with pytest.raises(QilError, match=r"b.psd: layer 'b' has one channel twice"):
        read_psd(tmp_path / "b.psd")
