"""Compositing takes layers of any size at any place."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite, composite_8bit


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
