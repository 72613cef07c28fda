"""The model that comes with the package: what it is, that it is used where no other is named, and what it can do."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qil_jax.evaluation.layers import alpha_iou, rgb_l1
from qil_jax.inference.defaults import FILE, Defaults
from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import Request, Settings
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.programs import called, ended
from qil_jax.shipped import shipped_checkpoint
from qil_jax.weights import Checkpoint, Component
from qil_jax.weights.safetensors_io import read_headers, weight_files
from tools import demo, ship
from tools.make_demo_checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def test_it_is_sound_small_and_in_the_released_precision():
    folder = shipped_checkpoint()
    assert Checkpoint(folder).problems == []
    for component in Component:
        assert {x.dtype.name for x in read_headers(weight_files(folder / component)).values()} == {"bfloat16"}
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 40_000_000
    assert Defaults.of(folder) == ship.DEFAULTS


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load()


@pytest.mark.full
def test_a_bare_request_gets_its_best(pipeline):
    """Nothing is said but the picture: the checkpoint's own resolution, steps and layers hold."""
    picture = Image.open(EXAMPLES / "scene.png")
    bare = pipeline.decompose([Request(image=picture)])[0]
    own = ship.DEFAULTS
    said = Request(image=picture, layers=own.layers, resolution=own.resolution)
    spoken = pipeline.decompose([said], Settings(steps=own.steps, guidance=own.guidance))[0]
    assert bare.layered.layers.shape == (own.layers, own.resolution, own.resolution, 4)
    np.testing.assert_array_equal(bare.layered.layers, spoken.layered.layers)
    assert bare.request.layers == own.layers and bare.request.resolution == own.resolution


@pytest.mark.full
def test_it_has_learnt_to_take_a_scene_apart(pipeline):
    """An unseen scene: each thing in its own layer, far nearer to its true alpha than the whole picture is."""
    ground, *true = LayeredImage.load(EXAMPLES / "scene").layers
    picture = Image.open(EXAMPLES / "scene.png")
    made = pipeline.decompose([Request(image=picture, layers=3)])[0].layered.layers
    assert alpha_iou(made[0], ground) > 0.95 and rgb_l1(made[0], ground) < 0.1
    for thing, layer in zip(true, made[1:], strict=True):
        assert alpha_iou(layer, thing) > 0.4 > 2 * alpha_iou(ground, thing)


def test_infer_without_a_checkpoint_says_whose_layers_they_are(tmp_path):
    words = [sys.executable, ROOT / "infer.py", EXAMPLES / "unseen.png", "--out", tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(ship.DEFAULTS.about + "\n") and "It is not Qwen-Image-Layered" in done.stdout
    record = json.loads((tmp_path / "out" / "unseen" / "result.json").read_text())
    assert record["size"] == [256, 256] and len(record["layers"]) == 3
    assert record["checkpoint"]["folder"] == "demonstration" and record["settings"]["steps"] == 12


@pytest.mark.full
def test_the_demonstration_writes_layers_and_the_truth(tmp_path, capsys):
    assert demo.main(["--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"{called('decompose')} PICTURE --out results" in said
    for name in demo.PICTURES:
        assert name in said
        files = {file.name for file in (tmp_path / name).iterdir()}
        assert {"01_Layer_1.png", "03_Layer_3.png", "layers.psd", "sheet.png", "result.json"} <= files
        assert (tmp_path / f"{name}_truth.png").exists() == (name == "scene")


@pytest.mark.full
def test_the_demonstration_may_be_seen_again_and_replaces_nothing_but_its_results(tmp_path, capsys):
    (tmp_path / "unseen").mkdir()
    (tmp_path / "unseen" / "mine.txt").write_text("mine")
    assert ended(demo.main, ["--out", str(tmp_path)]) == 2
    assert "unseen: is no result and is left alone" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "unseen")
    assert demo.main(["--out", str(tmp_path)]) == demo.main(["--out", str(tmp_path)]) == 0


def test_a_checkpoint_without_defaults_is_asked_as_the_release_is(tmp_path):
    assert Defaults.of(tmp_path) == Defaults()
    assert dataclasses.astuple(Defaults()) == (4, 640, 50, 4.0, "model", "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "must be an object with layers, resolution, steps, guidance, output_size, about"),
        ('{"layer": 3}', "'layer' is none of layers"),
        ('{"steps": "12"}', "steps = '12': must be a whole number of at least 1"),
        ('{"output_size": "huge"}', "output_size = 'huge': must be one of model, input"),
        ('{"output_size": []}', "output_size = []: must be one of model, input"),
        ('{"guidance": true, "layers": 2.5}', "layers = 2.5: must be a whole number"),
        ('{"guidance": true, "layers": 2.5}', "guidance = True: must be a number"),
        ('{"resolution": 500}', "resolution = 500: must be a multiple of 32"),
        ('{"about": "\\ud800"}', "about = '\\ud800': must be a text"),
    ],
)
def test_defaults_that_are_none_are_refused_before_compute(tmp_path, text, says, capsys):
    write_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / FILE).write_text(text)
    with pytest.raises(ValueError, match=FILE) as caught:
        Defaults.of(tmp_path / "checkpoint")
    assert says in str(caught.value)
    from qil_jax.cli.decompose_arguments import parse_arguments

    with pytest.raises(SystemExit):
        parse_arguments(["a.png", "--checkpoint", str(tmp_path / "checkpoint"), "--out", "x"])
    assert says in capsys.readouterr().err


def test_what_is_said_outweighs_the_checkpoints_defaults(tmp_path):
    from qil_jax.cli.decompose_arguments import parse_arguments

    arguments = parse_arguments(["a.png", "--out", "x", "--steps", "5", "--layers", "2"])
    options, settings = arguments.options, arguments.settings
    assert (settings.steps, options.layers, options.resolution, settings.guidance) == (5, 2, 64, 1.0)
    write_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / FILE).write_text('{"steps": 7, "guidance": 2}')
    arguments = parse_arguments(["a.png", "--checkpoint", str(tmp_path / "checkpoint"), "--out", "x"])
    options, settings = arguments.options, arguments.settings
    assert (settings.steps, options.layers, settings.guidance) == (7, 4, 2)


def test_shipping(tmp_path, monkeypatch, capsys):
    """bf16 of whatever a run left, defaults beside it; nothing is replaced unasked, nothing too large is taken."""
    write_checkpoint(tmp_path / "trained")
    destination = tmp_path / "shipped"
    monkeypatch.setattr(ship, "shipped_checkpoint", lambda: destination)
    assert ship.main([str(tmp_path / "trained")]) == 0
    assert Checkpoint(destination).problems == [] and Defaults.of(destination) == ship.DEFAULTS
    with pytest.raises(SystemExit):
        ship.main([str(tmp_path / "trained")])
    assert "--overwrite" in capsys.readouterr().err
    monkeypatch.setattr(ship, "MOST_BYTES", 1000)
    before = (destination / FILE).stat().st_mtime_ns
    assert ended(ship.main, [str(tmp_path / "trained"), "--overwrite"]) == 2
    assert "at most" in capsys.readouterr().err and (destination / FILE).stat().st_mtime_ns == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shipped", "trained"]
