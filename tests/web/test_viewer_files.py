"""What the viewer saves is what its canvas shows: as PNG, as a script for `qil edit`, and as PSD for two readers."""

import base64
import json
import subprocess

import numpy as np
import pytest
from PIL import Image
from psd_tools import PSDImage
from viewing import edited, entry, scene, tree

from qil_jax.cli.edit import main as edit
from qil_jax.export.psd import write_psd
from qil_jax.export.result import write_result
from qil_jax.export.stored import read_tree
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.viewer.stored import stored_entry

pytestmark = pytest.mark.full


def change(view) -> list[dict]:
    """Move, fade, hide and reorder by the page; the operations that say the same."""
    view.select("box")
    view.page.locator(".picture").press("Shift+ArrowLeft")
    view.page.get_by_role("slider", name="Opacity").fill("40")
    view.press("Show noise")
    view.select("disc")
    view.press("Bring forward")
    return [
        {"op": "move", "layer": "box", "dx": -10},
        {"op": "opacity", "layer": "box", "opacity": 0.4},
        {"op": "opacity", "layer": "noise", "opacity": 0},
        {"op": "reorder", "layer": "disc", "above": "box"},
    ]


def test_the_png_is_the_canvas_with_every_bit(view):
    layered = scene()
    view.show(entry(layered, title="a/b <c>"))
    view.press("Show ground")
    operations = [{"op": "opacity", "layer": "ground", "opacity": 0}, *change(view)]
    file = view.download("PNG")
    assert file.name == "a_b_c.png"
    with Image.open(file) as picture:
        assert picture.mode == "RGBA"
        pixels = np.asarray(picture)
    assert np.count_nonzero(pixels[..., 3] % 255) > 0, "straight alpha"
    np.testing.assert_array_equal(pixels, edited(layered, *operations).composite_8bit())


@pytest.mark.parametrize("kind", ["result", "pngs"])
def test_the_script_replays_to_the_same_pixels(view, tmp_path, kind):
    folder = tmp_path / "made"
    if kind == "result":
        write_result(folder, scene(), scene().layers[0], {})
    else:
        scene().save(folder)
    view.show(stored_entry(folder))
    change(view)
    view.select("nothing")
    view.press("Delete layer")
    script = view.download("Script")
    assert {operation["op"] for operation in json.loads(script.read_text())} == {"move", "opacity", "reorder", "delete"}
    assert edit([str(folder), "--script", str(script), "--out", str(tmp_path / "edited")]) == 0
    again = read_tree(tmp_path / "edited").layered
    np.testing.assert_array_equal(again.composite_8bit(), view.pixels())


def over(pixels: np.ndarray) -> np.ndarray:
    """Premultiplied pixels in [0, 255]."""
    return np.concatenate([pixels[..., :3] * (pixels[..., 3:] / 255), pixels[..., 3:]], axis=-1)


def test_psd_tools_reads_the_layers(view):
    view.show(entry(scene()))
    change(view)
    document = PSDImage.open(view.download("PSD"))
    expected = [
        ("ground", 255, True, (0, 0, 64, 48)),
        ("box", 102, True, (24, 8, 44, 16)),
        ("disc", 255, True, (10, 13, 34, 36)),
        ("noise", 255, False, (40, 20, 62, 40)),
        ("nothing", 255, True, (0, 0, 1, 1)),
    ]
    assert [(x.name, x.opacity, x.visible, x.bbox) for x in document] == expected
    assert {x.blend_mode.name for x in document} == {"NORMAL"}
    for layer, (name, *_, (left, top, right, bottom)) in zip(document, expected, strict=True):
        source = scene().layers[scene().names.index(name)]
        moved = 10 if name == "box" else 0
        np.testing.assert_array_equal(np.asarray(layer.topil()), source[top:bottom, left + moved : right + moved])
    composite = np.asarray(document.composite(force=True).convert("RGBA"))
    assert np.abs(over(composite) - over(view.pixels())).max() <= 2
    assert np.abs(over(np.asarray(document.topil())) - over(view.pixels())).max() <= 1


def test_groups_of_a_psd(view):
    view.show(entry(tree(), title="空の層"))
    view.select("box")
    view.press("Send backward")  # below the disc, so that its group is in two parts
    file = view.download("PSD")
    assert file.name == "空の層.psd"
    document = PSDImage.open(file)
    found = [(x.name, [y.name for y in x] if x.is_group() else None) for x in document.descendants()]
    assert found == [
        ("ground", None),
        ("group", ["things", "disc", "things"]),
        ("things", ["box"]),
        ("box", None),
        ("disc", None),
        ("things", ["noise"]),
        ("noise", None),
    ]


def by_ag_psd(npm, file) -> dict:
    done = subprocess.run(["node", npm.parent / "read_psd.js", file], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def pixels_of(picture: dict) -> np.ndarray:
    data = np.frombuffer(base64.b64decode(picture["data"]), np.uint8)
    return data.reshape(picture["height"], picture["width"], 4)


def agrees(layers: list[dict], tree: LayerTree, left: int = 0, top: int = 0) -> None:
    """Names, boxes, pixels and groups as ag-psd reads them are those of a tree."""
    assert [layer["name"] for layer in layers] == list(tree.layered.names)
    for i, layer in enumerate(layers):
        if i in tree.groups:
            group = tree.groups[i]
            agrees(layer["children"], group.tree, left + group.left, top + group.top)
            continue
        picture, (x, y) = pixels_of(layer["picture"]), (layer["left"] - left, layer["top"] - top)
        expected = tree.layered.layers[i, y : y + picture.shape[0], x : x + picture.shape[1]]
        np.testing.assert_array_equal(picture, expected)
        outside = tree.layered.layers[i].copy()
        outside[y : y + picture.shape[0], x : x + picture.shape[1]] = 0
        assert not outside[..., 3].any(), "all that shows is in the box"


@pytest.mark.parametrize("stack", [scene, tree])
def test_ag_psd_reads_what_the_export_writes(npm, tmp_path, stack):
    made = LayerTree.of(stack())
    write_psd(made, tmp_path / "a.psd")
    found = by_ag_psd(npm, tmp_path / "a.psd")
    agrees(found["children"], made)
    composite = pixels_of(found["picture"])
    assert np.abs(over(composite) - over(made.leaves().composite_8bit())).max() <= 1


@pytest.mark.parametrize("stack", [scene, tree])
def test_ag_psd_reads_what_the_viewer_saves(view, npm, stack):
    made = LayerTree.of(stack())
    view.show(entry(made))
    found = by_ag_psd(npm, view.download("PSD"))
    agrees(found["children"], made)
    assert np.abs(over(pixels_of(found["picture"])) - over(view.pixels())).max() <= 1
    view.press("Show noise")
    view.select("box")
    view.page.get_by_role("slider", name="Opacity").fill("40")
    text = json.dumps(by_ag_psd(npm, view.download("PSD")))
    assert text.count('"hidden": true') == 1 and '"opacity": 0.4' in text
