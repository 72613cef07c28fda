"""`qil decompose` with fewer layers, names, exact colours and recursion, on the shipped model; and without one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from halves import Halves
from PIL import Image
from psd_tools import PSDImage

from qil_jax.cli.decompose import main
from qil_jax.export import formats
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.describe import read_descriptions
from qil_jax.inference.finish import finish
from qil_jax.inference.request import Decomposition, JobOptions, Request, Settings
from qil_jax.layers.descriptions import LayerDescription
from qil_jax.layers.hidden import hidden
from qil_jax.layers.layered_image import LayeredImage

SCENE = Path(__file__).resolve().parents[2] / "examples" / "scene.png"


def leaf_files(layers: list[dict[str, Any]], left: int = 0, top: int = 0) -> list[tuple[str, int, int]]:
    """File and place on the canvas of every layer that is no group, bottom to top."""
    found = []
    for layer in layers:
        group = layer.get("group")
        inside = group and leaf_files(group["layers"], left + group["left"], top + group["top"])
        found += inside or [(layer["file"], left, top)]
    return found


def blend_of(folder: Path) -> np.ndarray:
    """The files of all innermost layers blended by Pillow's float-free rules in double precision."""
    record = json.loads((folder / "result.json").read_text())
    wide, high = record["size"]
    canvas = np.zeros((high + 400, wide + 400, 4))  # with room for groups whose canvas sticks out
    for file, left, top in leaf_files(record["layers"]):
        pixels = np.asarray(Image.open(folder / file)) / 255
        part = canvas[top + 200 :, left + 200 :][: pixels.shape[0], : pixels.shape[1]]
        alpha = pixels[..., 3:]
        part[:] = part * (1 - alpha) + np.concatenate([pixels[..., :3] * alpha, alpha], -1)
    return canvas[200 : 200 + high, 200 : 200 + wide]


@pytest.mark.full
def test_a_tree_from_the_command_line_returns_the_picture(tmp_path, capsys):
    words = [str(SCENE), "--out", str(tmp_path), "--layers", "auto", "--max-layers", "3", "--steps", "1"]
    words += ["--depth", "2", "--split", "largest", "--exact", "--output-size", "input", "--batch", "2"]
    assert main(words) == 0
    folder = tmp_path / "scene"
    record = json.loads((folder / "result.json").read_text())
    assert record["settings"] | {"auto": True, "exact": True, "depth": 2, "split": "largest"} == record["settings"]
    assert record["exact"]["psnr_after"] > 50 > record["exact"]["psnr_before"] and "upper" in record["health"]
    assert [layer["z"] for layer in record["layers"]] == list(range(len(record["layers"])))
    picture = np.asarray(Image.open(SCENE).convert("RGBA")).astype(float)
    assert np.abs(blend_of(folder) * 255 - picture).max() <= 1
    assert np.abs(np.asarray(PSDImage.open(folder / "layers.psd").composite(force=True)) - picture).max() <= 2
    capsys.readouterr()
    assert main(words) == 0 and "already finished" in capsys.readouterr().out
    assert main([word for word in words if word != "--exact"]) == 2
    assert "exact" in capsys.readouterr().err


@pytest.mark.full
def test_masks_of_hidden_pixels_from_the_command_line(tmp_path, capsys):
    """They are those of the layers that were written, and `qil export` gives both back."""
    words = [str(SCENE), "--out", str(tmp_path), "--layers", "3", "--steps", "1", "--export", "zip", "--hidden-masks"]
    with pytest.raises(SystemExit):
        main([*words, "--depth", "2"])
    assert "--hidden-masks goes with --depth 1" in capsys.readouterr().err
    assert main(words) == 0
    folder = tmp_path / "scene"
    layered = formats.read(folder).layered
    for entry, mask in zip(
        json.loads((folder / "result.json").read_text())["layers"], hidden(layered.layers), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / entry["hidden"]["file"])) > 0, mask)
    np.testing.assert_array_equal(formats.read(folder / "layers.zip").layered.layers, layered.layers)
    capsys.readouterr()
    assert main(words) == 0 and "already finished" in capsys.readouterr().out
    assert main(words[:-1]) == 2 and "hidden_masks" in capsys.readouterr().err


@pytest.mark.full
def test_descriptions_from_the_command_line(tmp_path):
    said = [{"text": "ground"}, {"text": "ball", "box": [0, 0, 20, 20]}]
    (tmp_path / "layers.json").write_text(json.dumps(said))
    words = [str(SCENE), "--out", str(tmp_path), "--steps", "1", "--describe", str(tmp_path / "layers.json")]
    assert main(words) == 0
    record = json.loads((tmp_path / "scene" / "result.json").read_text())
    assert {layer["name"] for layer in record["layers"]} == {"ground", "ball"}
    assert record["settings"]["layers"] == 2 and record["settings"]["described"][1] == said[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not JSON"),
        ("[]", "it describes no layer"),
        ('[{"txt": 1}]', "0.txt: Unexpected keyword argument"),
        ('[{}, {"box": [5, 5, 5, 9]}]', r"1.box: \[5, 5, 5, 9\] has no area"),
        ('[{"box": [5, 5]}]', "0.box"),
        ("\ud800", "is no text"),
        ('{"text": "a"}', "give a list from the bottom layer to the top"),
    ],
)
def test_bad_descriptions_are_refused(tmp_path, text, message):
    (tmp_path / "layers.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ValueError, match=message):
        read_descriptions(tmp_path / "layers.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_descriptions_may_have_any_mark_of_unicode(tmp_path, encoding):
    """As Windows' editors and PowerShell write it."""
    (tmp_path / "layers.json").write_bytes('[{"text": "Füchse"}]'.encode(encoding))
    assert read_descriptions(tmp_path / "layers.json") == (LayerDescription(text="Füchse"),)


def test_boxes_follow_the_size_at_which_layers_are_written():
    layers = np.zeros((2, 30, 40, 4), np.uint8)
    layers[0, 15:, 20:], layers[1, :10, :10] = (255, 0, 0, 255), (0, 0, 255, 255)
    stack = LayeredImage(layers=layers, names=("a", "b"))
    request = Request(image=Image.new("RGBA", (400, 300)), prompt="").filled(Defaults())
    boxes = [(0, 0, 100, 100), (200, 150, 400, 300)]
    options = JobOptions(described=tuple(LayerDescription(text=str(box), box=box) for box in boxes))
    made = Decomposition(
        layered=stack,
        composite=stack.composite_8bit(),
        input=stack.composite_8bit(),
        latents=np.zeros((1, 1, 1, 1), np.float32),
        timings={},
        request=request,
        sample=0,
    )
    (found,) = finish([made], [made.input], options, Halves(), Settings())
    assert found.tree.layered.names == tuple(map(str, boxes)) and (found.tree.layered.layers == layers[::-1]).all()
    assert set(found.report) == {"decisions", "health"}
