"""Layers are cropped and resized as the whole canvas would be, without fringes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite
from qil_jax.layers.resize import FILTER, choose_crop, resized

ROUNDINGS = 4
"""Of a value of either side: times alpha, after the rows, after the columns, over alpha."""
SIZES = st.tuples(st.integers(2, 90), st.integers(2, 90))


def random_layer(size: tuple[int, int], rng: np.random.Generator) -> BoxedLayer:
    left, top = (int(rng.integers(0, side)) for side in size)
    width, height = int(rng.integers(1, size[0] - left + 1)), int(rng.integers(1, size[1] - top + 1))
    pixels = rng.integers(0, 256, (height, width, 4), np.uint8)
    pixels[rng.random((height, width)) < 0.3] = 0
    return BoxedLayer(pixels=pixels, left=left, top=top, name="x")


@given(SIZES, SIZES, st.integers(0, 2**32))
def test_a_box_is_resized_as_its_whole_canvas_would_be(size, target, seed):
    rng = np.random.default_rng(seed)
    layer, crop = random_layer(size, rng), choose_crop(size, target, rng)
    canvas = np.zeros((size[1], size[0], 4), np.uint8)
    canvas[layer.window] = layer.pixels
    part = crop.left, crop.top, min(crop.left + crop.width, size[0]), min(crop.top + crop.height, size[1])
    expected = np.asarray(Image.fromarray(canvas).resize(target, FILTER, part)).astype(np.float64)
    (got,) = resized([layer], size, crop=crop, target=target)
    expected[..., :3] *= expected[..., 3:] / 255
    assert np.abs(composite([got], target) * 255 - expected).max() <= 2 * ROUNDINGS * 0.5


@given(SIZES, SIZES, st.integers(0, 2**32))
def test_the_crop_is_the_largest_of_its_ratio_and_lies_on_the_canvas(size, target, seed):
    for rng in (None, np.random.default_rng(seed)):
        crop = choose_crop(size, target, rng)
        assert crop.width / crop.height == pytest.approx(target[0] / target[1])
        assert 0 <= crop.left <= size[0] - crop.width + 1e-4 and 0 <= crop.top <= size[1] - crop.height + 1e-4
        assert crop.width == pytest.approx(size[0]) or crop.height == pytest.approx(size[1])


def test_crops_at_random_reach_both_ends():
    rng = np.random.default_rng(0)
    assert {choose_crop((9, 6), (6, 6), rng).left for _ in range(99)} == {0, 1, 2, 3}
    assert choose_crop((9, 6), (6, 6), None).left == 1


@given(SIZES, st.integers(0, 2**32))
def test_the_same_size_passes_unchanged(size, seed):
    rng = np.random.default_rng(seed)
    layers = [random_layer(size, rng) for _ in range(3)]
    canvas = composite(layers, size)
    same = resized(layers, size, crop=choose_crop(size, size, rng), target=size)
    np.testing.assert_array_equal(composite(same, size), canvas)


@given(SIZES, SIZES, st.integers(0, 2**32))
def test_an_opaque_ground_stays_opaque_and_its_colour_the_same(size, target, seed):
    ground = BoxedLayer(pixels=np.full((size[1], size[0], 4), 255, np.uint8), left=0, top=0, name="ground")
    ground.pixels[..., :3] = (200, 30, 90)
    crop = choose_crop(size, target, np.random.default_rng(seed))
    (got,) = resized([ground], size, crop=crop, target=target)
    assert got.pixels.shape == (target[1], target[0], 4) and (got.pixels == (200, 30, 90, 255)).all()


@pytest.mark.parametrize("target", [(24, 24), (96, 96), (41, 37)])
def test_no_fringe_and_no_haze(target):
    """A white disc over black that is hidden under alpha 0: no dark edge, and nothing outside the filter's support."""
    y, x = np.mgrid[:64, :64] - 31.5
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[np.hypot(x, y) < 20] = 255
    layer = BoxedLayer(pixels=pixels, left=0, top=0, name="disc")
    crop = choose_crop((64, 64), target, None)
    (got,) = resized([layer], (64, 64), crop=crop, target=target)
    shows = got.pixels[..., 3] > 0
    assert got.pixels[..., :3][shows].min() >= 250 and not got.pixels[~shows].any()
    rows = got.top + np.arange(got.pixels.shape[0])[:, None] + 0.5, got.left + np.arange(got.pixels.shape[1]) + 0.5
    scale = target[0] / crop.width
    away = np.hypot(rows[0] / scale + crop.top - 32, rows[1] / scale + crop.left - 32)
    assert away[shows].max() < 20 + 1.5 * max(1, 1 / scale) + 1


def test_what_is_cropped_away_goes_and_one_layer_stays():
    left = BoxedLayer(pixels=np.full((4, 2, 4), 9, np.uint8), left=0, top=0, name="left")
    right = BoxedLayer(pixels=np.full((4, 2, 4), 9, np.uint8), left=10, top=0, name="right")
    crop = choose_crop((12, 4), (8, 8), None)
    assert crop.left == 4
    (clear,) = resized([left, right], (12, 4), crop=crop, target=(8, 8))
    assert not clear.pixels.any()
    wide = choose_crop((12, 4), (24, 8), None)
    assert [x.name for x in resized([left, right], (12, 4), crop=wide, target=(24, 8))] == ["left", "right"]
