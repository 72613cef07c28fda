"""Masks of hidden pixels: files beside the layers, listed with them, that no reader takes for layers."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from qil_jax.cli.export import main
from qil_jax.errors import QilError
from qil_jax.evaluation import measure_layers
from qil_jax.export import formats
from qil_jax.export.format import Format
from qil_jax.export.result import read_result, write_result
from qil_jax.layers.layer_tree import Group, LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.records.sources import open_source


def covered() -> LayeredImage:
    """A ground whose left half is hidden, a panel that hides it, and an empty layer. One is named as masks are."""
    layers = np.random.default_rng(0).integers(1, 256, (3, 8, 12, 4), np.uint8)
    layers[..., 3] = 0
    layers[0, ..., 3], layers[1, :, :6, 3] = 255, 255
    return LayeredImage(layers=layers, names=("ground", "v1.2.hidden", "empty"))


MASKS = ("01_ground.hidden.png", "02_v1.2.hidden.hidden.png", "03_empty.hidden.png")


def check(entries: list, read) -> None:
    assert [entry["hidden"] for entry in entries] == [
        {"file": file, "share": share} for file, share in zip(MASKS, (0.5, 0, 0), strict=True)
    ]
    masks = [np.asarray(read(entry["hidden"]["file"])) for entry in entries]
    assert masks[0].shape == (8, 12) and {*masks[0].ravel()} == {0, 255}
    assert (masks[0][:, :6] == 255).all() and not masks[0][:, 6:].any() and not masks[1].any() and not masks[2].any()


def test_a_result_holds_and_lists_them(tmp_path):
    layered, folder = covered(), tmp_path / "result"
    exports = (Format.PSD, Format.ZIP)
    write_result(folder, layered, layered.composite_8bit(), {}, exports=exports, hidden_masks=True)
    record = read_result(folder)
    assert record is not None and {*MASKS} <= {*record["files"]}
    check(record["layers"], lambda name: Image.open(folder / name))
    for source in (folder, folder / "layers.zip"):
        assert main([str(source), "--to", "png", "--out", str(tmp_path / f"back of {source.name}")]) == 0
        back = formats.read(tmp_path / f"back of {source.name}").layered
        np.testing.assert_array_equal(back.layers, layered.layers)
        assert back.names == layered.names
        assert not [*(tmp_path / f"back of {source.name}").glob("*.hidden.hidden.png")]
    (folder / MASKS[0]).write_bytes(b"")
    with pytest.raises(QilError, match=r"01_ground\.hidden\.png was altered"):
        read_result(folder)
    write_result(folder, layered, layered.composite_8bit(), {}, overwrite=True)
    assert not (folder / MASKS[0]).exists() and "hidden" not in read_result(folder)["layers"][0]


@pytest.mark.parametrize("format", [Format.PNG, Format.ZIP])
def test_export_writes_them(tmp_path, format):
    layered, out = covered(), tmp_path / f"out.{format}"
    layered.save(tmp_path / "pngs")
    assert main([str(tmp_path / "pngs"), "--to", format, "--out", str(out), "--hidden-masks"]) == 0
    folder = out
    if format is Format.ZIP:
        folder = tmp_path / "unpacked"
        shutil.unpack_archive(out, folder, "zip")
    check(json.loads((folder / "manifest.json").read_text())["layers"], lambda name: Image.open(folder / name))
    np.testing.assert_array_equal(formats.read(out).layered.layers, layered.layers)


def test_folders_of_pngs_do_not_count_them(tmp_path):
    """A layer whose own name ends like a mask's does count."""
    layered, folder = covered(), tmp_path / "records" / "fox"
    formats.write(layered, folder, Format.PNG, hidden_masks=True)
    assert len([*folder.glob("*.png")]) == 6
    (folder / "manifest.json").unlink()
    loaded = LayeredImage.load(folder)
    np.testing.assert_array_equal(loaded.layers, layered.layers)
    assert loaded.names == ("01_ground", "02_v1.2.hidden", "03_empty")
    assert open_source(tmp_path / "records", "train").metadata().rows[0, 2] == 3
    assert [file.name for file in measure_layers.layer_files(folder)] == [f"{name}.png" for name in loaded.names]


def test_trees_and_other_formats_are_refused(tmp_path):
    layered = covered()
    tree = LayerTree(layered=layered, groups={1: Group(tree=LayerTree.of(layered), left=0, top=0)})
    for format in (Format.PNG, Format.ZIP):
        with pytest.raises(QilError, match="these layers have groups"):
            formats.write(tree, tmp_path / "out", format, hidden_masks=True)
    layered.save(tmp_path / "pngs")
    with pytest.raises(QilError, match="--hidden-masks goes with --to png or zip"):
        main([str(tmp_path / "pngs"), "--to", "psd", "--hidden-masks"])
    assert [file.name for file in tmp_path.iterdir()] == ["pngs"]
