"""LayeredImage: the compositing recursion of the paper, and the arrays that are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qil_jax.layers.layered_image import LayeredImage


def random_layers(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 4), np.uint8)


def layered(layers: np.ndarray) -> LayeredImage:
    return LayeredImage(layers=layers, names=tuple(f"Layer {i}" for i in range(len(layers))))


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_composite_is_the_recursion_of_the_paper(count, height, width, seed):
    layers = random_layers(count, height, width, seed)
    colour, alpha = np.zeros((height, width, 3)), np.zeros((height, width, 1))
    for layer in layers / 255:
        a = layer[..., 3:]
        colour, alpha = a * layer[..., :3] + (1 - a) * colour, a + alpha - a * alpha
    composite = layered(layers).composite()
    np.testing.assert_allclose(composite[..., 3:], alpha, atol=1e-12)
    np.testing.assert_allclose(composite[..., :3] * composite[..., 3:], colour, atol=1e-12)


def test_composite_agrees_with_pillow_within_its_rounding():
    layers = random_layers(5, 40, 30)
    picture = Image.fromarray(layers[0])
    for layer in layers[1:]:
        picture = Image.alpha_composite(picture, Image.fromarray(layer))
    assert np.abs(layered(layers).composite_8bit().astype(int) - np.asarray(picture)).max() <= 3


def test_an_opaque_layer_hides_and_a_clear_one_does_not():
    layers = random_layers(3, 8, 8)
    layers[1, ..., 3], layers[2, ..., 3] = 255, 0
    np.testing.assert_array_equal(layered(layers).composite_8bit(), layers[1])
    layers[..., 3] = 0
    assert layered(layers).composite().max() == 0
    assert layered(layers).size == (8, 8)


@pytest.mark.parametrize(
    ("layers", "names", "words"),
    [
        (np.zeros((2, 3, 4, 3), np.uint8), ("a", "b"), r"\(layers, height, width, 4\)"),
        (np.zeros((0, 3, 4, 4), np.uint8), (), "at least one layer"),
        (np.zeros((1, 0, 4, 4), np.uint8), ("a",), "one pixel"),
        (np.zeros((2, 3, 4, 4), np.uint8), ("a",), "1 names for 2 layers"),
    ],
)
def test_refusals(layers, names, words):
    image = layered(random_layers(1, 2, 2))
    object.__setattr__(image, "layers", layers)  # past the types that the tests check at every call
    object.__setattr__(image, "names", names)
    with pytest.raises(ValueError, match=words):
        image.validate()


def test_save_and_load_lose_nothing(tmp_path):
    given = LayeredImage(
        layers=random_layers(12, 5, 7),
        names=("", *(f"Ebene {i} \u4e2d\U0001f600\n" for i in range(11))),
        caption="two lines\r\nand \u00e4\n",
        source="a/b.psd",
        licence="CC0-1.0",
        decisions=("merged", "dropped"),
    )
    given.save(tmp_path / "sample")
    back = LayeredImage.load(tmp_path / "sample")
    np.testing.assert_array_equal(back.layers, given.layers)
    for field in ("names", "caption", "source", "licence", "decisions"):
        assert getattr(back, field) == getattr(given, field)
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]
    with pytest.raises(FileExistsError, match="give another folder, or remove it"):
        given.save(tmp_path / "sample")


def test_load_takes_any_numbered_pngs(tmp_path):
    layers = random_layers(11, 3, 2)
    for i, layer in enumerate(layers):
        Image.fromarray(layer).save(tmp_path / f"{i}.png")
    back = LayeredImage.load(tmp_path)
    np.testing.assert_array_equal(back.layers, layers)
    assert back.names[-1] == "10" and back.caption == ""


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no PNG in it"),
        ({"0.png": (2, 2), "1.png": (2, 3)}, "different sizes"),
        ({"0.png": (2, 2), "top.png": (2, 2)}, "number layers bottom to top"),
    ],
)
def test_load_says_what_is_wrong(tmp_path, files, message):
    for name, size in files.items():
        Image.new("RGBA", size).save(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        LayeredImage.load(tmp_path)
