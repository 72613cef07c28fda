"""Recolouring: hue as colorsys has it, tints, gradients; alpha and what is hidden under alpha 0 stay."""

import colorsys

import numpy as np
import pytest
from edits import layer
from hypothesis import given
from hypothesis import strategies as st

from qil_jax.editing.colours import gradient_mapped, hue_rotated, tinted

RECOLOURINGS = {
    "hue": lambda x: hue_rotated(x, 100.0),
    "tint": lambda x: tinted(x, "#0a8040", 0.7),
    "gradient": lambda x: gradient_mapped(x, [(0.2, "#ff0000"), (0.9, "#00ff80")]),
}


def random_layer(seed: int):
    return layer(np.random.default_rng(seed).integers(0, 256, (9, 8, 4), np.uint8) // 64 * 85)  # 0, 85, 170 or 255


@pytest.mark.parametrize("name", RECOLOURINGS)
def test_alpha_and_hidden_colours_stay(name):
    before = random_layer(0)
    after = RECOLOURINGS[name](before)
    hidden = before.pixels[..., 3] == 0
    assert hidden.any()
    np.testing.assert_array_equal(after.pixels[..., 3], before.pixels[..., 3])
    np.testing.assert_array_equal(after.pixels[hidden], before.pixels[hidden])
    assert (after.pixels[~hidden] != before.pixels[~hidden]).any()


@given(st.integers(0, 999), st.floats(-360, 360))
def test_hue_is_turned_as_colorsys_turns_it(seed, degrees):
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 4), np.uint8)
    pixels[..., 3] = 255
    got = hue_rotated(layer(pixels), degrees).pixels
    for before, after in zip(pixels.reshape(-1, 4), got.reshape(-1, 4), strict=True):
        hue, lightness, saturation = colorsys.rgb_to_hls(*(before[:3] / 255))
        wanted = colorsys.hls_to_rgb((hue + degrees / 360) % 1, lightness, saturation)
        assert np.abs(after[:3] - 255 * np.array(wanted)).max() <= 0.501


def test_whole_turns_change_nothing_and_gray_has_no_hue():
    full = random_layer(1)
    for degrees in (0.0, 360.0, -360.0):
        np.testing.assert_array_equal(hue_rotated(full, degrees).pixels, full.pixels)
    primaries = layer(np.array([[(255, 0, 0, 255), (0, 255, 0, 255), (9, 9, 9, 255)]], np.uint8))
    expected = [[(0, 255, 0, 255), (0, 0, 255, 255), (9, 9, 9, 255)]]
    np.testing.assert_array_equal(hue_rotated(primaries, 120.0).pixels, expected)


def test_tints_reach_from_nothing_to_the_colour():
    pixels = random_layer(2).pixels | np.array([0, 0, 0, 255], np.uint8)
    np.testing.assert_array_equal(tinted(layer(pixels), "#123456", 0.0).pixels, pixels)
    assert (tinted(layer(pixels), "#123456", 1.0).pixels == (0x12, 0x34, 0x56, 255)).all()
    half = tinted(layer(pixels), "#ffffff", 0.5).pixels
    assert np.abs(half[..., :3] - (pixels[..., :3] + 255.0) / 2).max() <= 0.5


def test_gradients_map_brightness():
    grays = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 4, -1)
    grays[..., 3] = 255
    same = gradient_mapped(layer(grays), [(0.0, "#000000"), (1.0, "#ffffff")])
    np.testing.assert_array_equal(same.pixels, grays)
    mapped = gradient_mapped(layer(grays), [(0.25, "#0000ff"), (0.5, "#ff0000"), (1.0, "#ffff00")]).pixels[0]
    assert (mapped[0] == mapped[63]).all() and (mapped[0] == (0, 0, 255, 255)).all()
    assert mapped[255].tolist() == [255, 255, 0, 255] and (np.diff(mapped[128:, 1].astype(int)) >= 0).all()
    colours = layer(np.array([[(255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255)]], np.uint8))
    brightness = gradient_mapped(colours, [(0.0, "#000000"), (1.0, "#ffffff")]).pixels[0, :, 0]
    np.testing.assert_array_equal(brightness, np.rint(np.array([0.2126, 0.7152, 0.0722]) * 255))
