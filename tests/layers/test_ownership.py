"""Ownership: missing tips come back, and nothing else moves."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite_8bit
from qil_jax.layers.ownership import reassigned

SIDE = 48
RED, BLUE, GREEN = (210, 60, 40), (60, 110, 180), (70, 160, 60)


def shape(points: list[tuple[int, int]], colour: tuple[int, int, int]) -> np.ndarray:
    """A polygon with smooth edges."""
    large = Image.new("L", (8 * SIDE, 8 * SIDE))
    ImageDraw.Draw(large).polygon([(8 * x, 8 * y) for x, y in points], 255)
    layer = np.empty((SIDE, SIDE, 4), np.uint8)
    layer[..., :3], layer[..., 3] = colour, np.asarray(large.resize((SIDE, SIDE), Image.Resampling.BOX))
    return layer


def ground() -> np.ndarray:
    layer = np.full((SIDE, SIDE, 4), (*BLUE, 255), np.uint8)
    layer[..., 0] += np.arange(SIDE, dtype=np.uint8)[:, None]
    return layer


def blended(layers: np.ndarray) -> np.ndarray:
    return composite_8bit([BoxedLayer(pixels=x, left=0, top=0, name="") for x in layers], (SIDE, SIDE))


def painted(layers: np.ndarray, seed: int = 0) -> np.ndarray:
    """Layers as a decoder paints them: colours a few levels off."""
    noise = np.random.default_rng(seed).normal(0, 4, layers.shape)
    noise[..., 3] = 0
    return np.clip(np.rint(layers + noise), 0, 255).astype(np.uint8)


SAIL = shape([(24, 4), (12, 40), (36, 40)], RED)


@pytest.mark.parametrize(("rows", "opaque"), [(12, 255), (16, 255), (16, 252)])
def test_a_tip_that_the_model_missed_comes_back(rows, opaque):
    """A sail without its upper rows; the picture shows them. A decoder's ground is not quite opaque."""
    truth = np.stack([ground(), SAIL])
    given = painted(truth)
    given[1, :rows, :, 3] = 0
    given[0, ..., 3] = opaque
    found = reassigned(given, blended(truth))
    lost, left = (np.abs(x[1, ..., 3].astype(int) - SAIL[..., 3]).sum() for x in (given, found))
    assert left < 0.2 * lost
    tip = SAIL[..., 3] == 255
    assert np.abs(found[1, tip, :3].astype(int) - RED).max() < 40  # new pixels have the sail's colours
    np.testing.assert_array_equal(found[0], given[0])


def test_ground_that_a_thing_took_with_it_goes_back():
    """A rim about the sail, painted red where the picture shows the ground, of which the model is not sure."""
    truth = np.stack([ground(), SAIL])
    given = painted(np.stack([ground(), shape([(24, 4), (6, 40), (42, 40)], RED)]))
    given[1, ..., 3] = np.where(SAIL[..., 3] > 0, given[1, ..., 3], given[1, ..., 3] * 0.8)
    found = reassigned(given, blended(truth))
    taken, left = (np.abs(x[1, ..., 3].astype(int) - SAIL[..., 3]).sum() for x in (given, found))
    assert left < 0.3 * taken


@pytest.mark.parametrize("opacity", [0.3, 0.6])
def test_shadows_and_glass_are_not_made_solid(opacity):
    """A soft disc whose model's version is a little too small: no pixel of it grows solid."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    layers = np.stack([ground(), np.zeros_like(SAIL)])
    for layer, size in ((layers, 18), (given := painted(layers), 14)):
        layer[1, ..., 3] = np.rint(255 * opacity * np.clip((size - np.hypot(x, y)) / 8, 0, 1))
    found = reassigned(given, blended(layers))
    assert np.abs(found[1, ..., 3].astype(int) - given[1, ..., 3]).max() <= 255 * 0.2
    assert found[1, ..., 3].max() <= given[1, ..., 3].max() + 1


def test_where_the_blend_is_the_picture_nothing_moves():
    stack = np.stack([ground(), SAIL, shape([(30, 20), (46, 20), (46, 46), (30, 46)], GREEN)])
    np.testing.assert_array_equal(reassigned(stack, blended(stack)), stack)


def test_only_the_part_that_moves_is_looked_at():
    """On a large canvas the same comes out, wherever the thing stands."""
    truth = np.stack([ground(), SAIL])
    given = painted(truth)
    given[1, :12, :, 3] = 0
    found = reassigned(given, blended(truth))
    pad = ((0, 0), (40, 5), (60, 0), (0, 0))
    large = reassigned(np.pad(given, pad, mode="edge"), np.pad(blended(truth), pad[1:], mode="edge"))
    assert np.abs(large[1, 40:-5, 60:, 3].astype(int) - found[1, ..., 3]).max() <= 1  # its border lies elsewhere
    assert not large[1, :40, ..., 3].any() and not large[1, ..., :60, 3].any()


def test_what_three_layers_share_stays():
    """The tip is missing, and another layer touches it."""
    near = shape([(18, 0), (30, 0), (30, 12), (18, 12)], GREEN)
    near[..., 3] //= 8
    truth = np.stack([ground(), SAIL, near])
    given = truth.copy()
    given[1, :12, :, 3] = 0
    found = reassigned(given, blended(truth))
    np.testing.assert_array_equal(found[1, :12], given[1, :12])


@pytest.mark.parametrize("count", [2, 3, 20])
@pytest.mark.parametrize("size", [(5, 1), (1, 1), (9, 16)])
@pytest.mark.parametrize("shown", ["clear", "noise"])
@pytest.mark.filterwarnings("error")
def test_any_stack(count, size, shown):
    rng = np.random.default_rng(count)
    stack = rng.choice([0, 255], (count, *size, 4)).astype(np.uint8)
    stack[0, ..., 3] = 255
    picture = rng.choice([0, 255], (*size, 4)).astype(np.uint8)
    picture[..., 3] = 0 if shown == "clear" else 255
    found = reassigned(stack, picture)
    assert found.shape == stack.shape and (found[0, ..., 3] >= 254).all()
    if shown == "clear":
        np.testing.assert_array_equal(found, stack)
    elif count == 2 and size == (9, 16):
        assert (found != stack).any()


def test_one_layer_has_all():
    stack = ground()[None]
    assert reassigned(stack, SAIL) is stack
