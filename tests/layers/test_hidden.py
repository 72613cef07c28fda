"""Hidden pixels: what of a layer nobody sees, against a slow reading of the definition, whatever the size of parts."""

import layer_stacks
import numpy as np
from hypothesis import given

from qil_jax.layers import hidden as module
from qil_jax.layers.hidden import SEEN, hidden


def shares(layers: np.ndarray) -> np.ndarray:
    """In double precision, from the definition."""
    alphas = layers[..., 3] / 255
    return np.stack([alphas[i] * np.prod(1 - alphas[i + 1 :], axis=0) for i in range(len(alphas))])


@given(layer_stacks.stacks())
def test_it_is_hidden_where_little_of_it_shows(boxes):
    layers = np.zeros((len(boxes), *layer_stacks.SIZE[::-1], 4), np.uint8)
    for layer, box in zip(layers, boxes, strict=True):
        layer[box.window] = box.pixels
    found, seen, there = hidden(layers), shares(layers), layers[..., 3] > 0
    assert not found[~there].any(), "where a layer has no pixel, none is hidden"
    assert found[there & (seen < SEEN - 1e-6)].all() and not found[seen > SEEN + 1e-6].any()


def test_what_a_decoder_means_as_opaque_hides():
    """It gives 252, and alphas of three layers of it."""
    layers = np.zeros((3, 4, 6, 4), np.uint8)
    layers[0, ..., 3], layers[1, :, 2:, 3], layers[2, :, 4:, 3] = 255, 252, 128
    expected = np.zeros((3, 4, 6), bool)
    expected[0, :, 2:] = True
    np.testing.assert_array_equal(hidden(layers), expected)


def test_parts_change_nothing(monkeypatch):
    layers = np.random.default_rng(0).choice(np.array([0, 1, 128, 254, 255], np.uint8), (5, 23, 9, 4))
    whole = hidden(layers)
    monkeypatch.setattr(module, "ROWS", 3)
    np.testing.assert_array_equal(hidden(layers), whole)
    assert whole.any() and not whole.all()
