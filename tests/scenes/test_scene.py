"""Scenes: the same for the same seed, every layer contributes, and they pass through the pipeline as documents."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qil_jax.cli import make_scenes
from qil_jax.documents.limits import PSDLimits
from qil_jax.documents.prepare import to_bytes
from qil_jax.documents.psd import read_psd
from qil_jax.export.psd import write_psd
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.visibility import contributing, visible_pixels
from qil_jax.programs import ended
from qil_jax.records.record import decode
from qil_jax.scenes.assets import Asset, Assets
from qil_jax.scenes.scene import DESIGN, GROUPED, PHOTO, SIMPLE, VARIED, SceneConfig, make_scene
from qil_jax.scenes.shapes import vary

CONFIG = SceneConfig(side=64)


def asset(name: str, seed: int, *, opaque: bool) -> Asset:
    pixels = np.random.default_rng(seed).integers(0, 256, (50, 70, 4), np.uint8)
    pixels[..., 3] = 255 if opaque else np.hypot(*np.mgrid[-1:1:50j, -1:1:70j]) < 0.9
    pixels[..., 3] *= 1 if opaque else 255
    return Asset(pixels=pixels, name=name, package="a-package", licence="MIT")


ASSETS = Assets(objects=[asset("a ball", 1, opaque=False)], backgrounds=[asset("a field", 2, opaque=True)])


@given(st.integers(0, 10_000))
@pytest.mark.full
def test_every_layer_counts(seed):
    scene = make_scene(seed, CONFIG)
    assert 2 <= len(scene.layers) <= 7 and (scene.layers[0].pixels[..., 3] == 255).all()
    assert scene.layers[0].pixels.shape == (64, 64, 4)
    kept, gone = contributing(scene.layers, scene.size)
    assert len(kept) == len(scene.layers) and not gone
    assert (visible_pixels(scene.layers, scene.size) > 0.01 * 64**2).all()
    for layer in scene.layers:
        assert not layer.pixels[layer.pixels[..., 3] == 0].any()
    for layer in scene.layers[1:]:
        assert layer.name.lower() in scene.caption.lower()


@given(st.integers(0, 1000))
@pytest.mark.full
def test_a_seed_is_a_scene(seed):
    again = [to_bytes(make_scene(s, CONFIG)) for s in (seed, seed, seed + 1)]
    assert again[0] == again[1] != again[2]
    assert to_bytes(make_scene(seed, CONFIG, ASSETS)) == to_bytes(make_scene(seed, CONFIG, ASSETS))


@given(st.integers(0, 10_000))
@pytest.mark.full
def test_the_picture_tells_the_order(seed):
    """In simple scenes things with lower edges are in front, and each is a layer that is visible enough."""
    scene = make_scene(seed, SIMPLE)
    ends = [layer.box[3] for layer in scene.layers[1:]]
    assert ends == sorted(ends) and 2 <= len(scene.layers) <= 5
    own = np.array([layer.pixels[..., 3].sum() / 255 for layer in scene.layers[1:]])
    shown = visible_pixels(scene.layers, scene.size)[1:]
    assert (shown > 0.4 * own).all() and (shown > 0.03 * 64**2).all()
    assert all(layer.name.lower() in scene.caption.lower() for layer in scene.layers[1:])


@pytest.mark.parametrize("preset", [DESIGN, PHOTO], ids=["design", "photo"])
def test_scenes_at_128_pixels(preset):
    """The same for a seed, ordered by lower edges, mostly of one or two things, and on photographs as often as said."""
    scenes = [make_scene(seed, preset, ASSETS) for seed in range(150)]
    assert [to_bytes(make_scene(seed, preset, ASSETS)) for seed in (0, 149)] == [to_bytes(scenes[i]) for i in (0, 149)]
    for scene in scenes:
        ends = [layer.box[3] for layer in scene.layers[1:]]
        assert scene.size == (128, 128) and ends == sorted(ends) and 1 <= len(ends) <= preset.most
    counts = np.bincount([len(scene.layers) - 1 for scene in scenes])
    assert counts[1:3].sum() > 0.6 * len(scenes) and (counts[1 : preset.most + 1] > 0).all()
    pictured = np.mean([scene.layers[0].name == "a field" for scene in scenes])
    assert abs(pictured - preset.pictured) < 0.13
    names = [layer.name for scene in scenes for layer in scene.layers[1:]]
    assert "a ball" in names and any(name.startswith("the text") for name in names)
    assert not any("glass" in name for name in names)


def test_grouped_scenes_merge_what_never_touches():
    pairs = [(make_scene(seed, GROUPED), make_scene(seed, SIMPLE)) for seed in range(60)]
    assert sum(len(grouped.layers) < len(simple.layers) for grouped, simple in pairs) > 10
    assert any([layer.box[3] for layer in g.layers[1:]] != sorted(x.box[3] for x in g.layers[1:]) for g, _ in pairs)


def test_varied_pictures_keep_their_pixels_and_their_shape_nearly():
    picture = Image.new("RGBA", (40, 30), (10, 120, 240, 255))
    made = [vary(picture, np.random.default_rng(seed), 1.0) for seed in range(60)]
    assert {tuple(sorted(image.getpixel((9, 9))[:3])) for image in made} == {(10, 120, 240)}
    assert len({image.getpixel((9, 9)) for image in made}) == 6
    assert {image.size[0] for image in made} >= {40, 30} and min(image.size[1] for image in made) < 25
    assert all((w == 40) != (h == 30) or (w, h) == (40, 30) for w, h in (image.size for image in made))
    assert vary(picture, np.random.default_rng(0), 0.0) == picture
    drawn = zip(make_scene(3, VARIED).layers, make_scene(3, SIMPLE).layers, strict=True)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in drawn)


@pytest.mark.full
def test_scenes_are_various():
    scenes = [make_scene(seed, CONFIG) for seed in range(200)]
    text = " ".join(scene.caption for scene in scenes)
    for word in ("glass", "the text", "star", "disc", "stripes", "checks", "glow", "fading", "plain"):
        assert word in text
    counts = np.bincount([len(scene.layers) for scene in scenes])
    assert (counts[2:8] > 0).all()
    soft = [((p := layer.pixels[..., 3]) > 0) & (p < 255) for scene in scenes for layer in scene.layers[1:]]
    assert sum(s.mean() > 0.2 for s in soft) > 50  # shadows and glass


def test_assets_are_named_with_their_licences():
    scenes = [make_scene(seed, CONFIG, ASSETS) for seed in range(40)]
    both = [s for s in scenes if "a ball" in s.caption.lower() and "a field" in s.caption]
    assert both and all(s.licence == "MIT" and "a-package: a ball" in s.source for s in both)


@pytest.mark.parametrize("seed", range(5))
def test_scenes_are_documents(seed, tmp_path):
    scene = make_scene(seed, CONFIG)
    write_psd(scene.to_layered_image(), tmp_path / "scene.psd")
    document = read_psd((tmp_path / "scene.psd").read_bytes(), PSDLimits())
    assert document.psnr_compositor > 50 and [x.name for x in document.layers] == [x.name for x in scene.layers]
    for now, was in zip(document.layers, scene.layers, strict=True):
        np.testing.assert_array_equal(now.pixels * (now.pixels[..., 3:] > 0), was.pixels)


def contents(folder) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.full
def test_records_of_the_tool(tmp_path, capsys):
    a, b = tmp_path / "a", tmp_path / "b"
    for out in (a, b):
        assert make_scenes.main(["--count", "25", "--out", str(out), "--side", "48", "--seed", "7"]) == 0
    assert contents(a) == contents(b)
    builder = tfds.builder_from_directory(str(a / "layered_dataset" / "1.0.0"))
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    assert sizes == {"train": 22, "validation": 1, "test": 2}
    made = {to_bytes(decode(x)) for split in sizes for x in builder.as_data_source(split)}
    assert made == {to_bytes(make_scene(seed, SceneConfig(side=48))) for seed in range(7, 32)}
    assert ended(make_scenes.main, ["--count", "25", "--out", str(a)]) == 2
    assert "exists: remove it or write elsewhere" in capsys.readouterr().err


def test_other_forms_of_the_tool(tmp_path, capsys):
    assert make_scenes.main(["--count", "2", "--out", str(tmp_path / "f"), "--side", "40", "--format", "folders"]) == 0
    expected = make_scene(1, SceneConfig(side=40)).to_layered_image()
    back = LayeredImage.load(tmp_path / "f" / "scene_00000001")
    np.testing.assert_array_equal(back.layers, expected.layers)
    assert (back.caption, back.names, back.licence) == (expected.caption, expected.names, expected.licence)
    assert make_scenes.main(["--count", "2", "--out", str(tmp_path / "p"), "--side", "40", "--format", "psd"]) == 0
    assert len(list((tmp_path / "p").glob("*.psd"))) == 2
    assert (tmp_path / "p" / "scene_00000001.txt").read_text().strip() == expected.caption
    assert ended(make_scenes.main, ["--count", "2", "--out", str(tmp_path / "p"), "--format", "psd"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--count", "0", "--side", "8"],
            "--count must be from 1 to 1000000000, got 0\n  --side must be from 32 to 16384, got 8",
        ),
        (["--sied", "64"], "unknown option --sied (did you mean --side?)"),
        (["--count", "1", "--format", "psd", "--", "--streaming"], "--format psd takes no options of Apache Beam"),
        (["--count", "1", "--", "--direct_num_wrkers=2"], "(did you mean --direct_num_workers?)"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, capsys, words, says):
    try:
        status = ended(make_scenes.main, ["--out", str(tmp_path / "out"), *words])
    except SystemExit as end:
        status = end.code
    assert status == 2 and says in capsys.readouterr().err and not (tmp_path / "out").exists()
