"""Compositing takes layers of any size at any place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qil_jax.export.result import recomposition_psnr
from qil_jax.layers import compositing
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite, composite_8bit
from qil_jax.layers.layered_image import LayeredImage


def random_layers(seed: int) -> list[BoxedLayer]:
    rng = np.random.default_rng(seed)
    return [
        BoxedLayer(
            pixels=rng.integers(0, 256, (*rng.integers(1, 20, 2), 4), np.uint8),
            left=int(rng.integers(-15, 15)),
            top=int(rng.integers(-15, 15)),
            name="x",
        )
        for _ in range(4)
    ]


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9))
def test_what_lies_outside_the_canvas_does_not_count(seed, width, height):
    layers = random_layers(seed)
    wide = [BoxedLayer(pixels=x.pixels, left=x.left + 20, top=x.top + 20, name="x") for x in layers]
    whole = np.s_[20 : 20 + height, 20 : 20 + width]
    np.testing.assert_array_equal(composite(layers, (width, height)), composite(wide, (60, 60))[whole])
    np.testing.assert_array_equal(composite_8bit(layers, (width, height)), composite_8bit(wide, (60, 60))[whole])


def test_a_layer_within_the_canvas_is_itself_and_one_outside_is_nothing():
    layer = BoxedLayer(pixels=np.ones((2, 3, 4), np.uint8), left=1, top=0, name="x")
    assert layer.within((4, 2)) is layer
    part = layer.within((3, 1))
    assert part is not None and part.box == (1, 0, 3, 1)
    assert layer.within((1, 2)) is None
    assert BoxedLayer(pixels=layer.pixels, left=0, top=-2, name="x").within((9, 9)) is None


@pytest.mark.parametrize("part", [1, 13, 40])
def test_parts_change_no_bit(monkeypatch, part):
    """Of blends in single and in double precision, and of the error against another picture."""
    layers, size = random_layers(5), (13, 17)
    rng = np.random.default_rng(0)
    stack = LayeredImage(layers=rng.choice(np.array([0, 1, 90, 255], np.uint8), (3, 17, 13, 4)), names=("a", "b", "c"))
    stack.layers[1, 4:12, :, 3] = 0  # a part of which nothing shows
    other = rng.integers(0, 256, (17, 13, 4), np.uint8)

    def blends():
        return composite_8bit(layers, size), stack.composite_8bit(), stack.composite()

    whole, error = blends(), recomposition_psnr(stack, other)
    monkeypatch.setattr(compositing, "PART", part)
    for found, expected in zip(blends(), whole, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert recomposition_psnr(stack, other) == pytest.approx(error, abs=1e-9)
