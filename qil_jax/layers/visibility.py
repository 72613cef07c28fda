"""Visibility of layers in the composite, and the layers that contribute to it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt32

from qil_jax.errors import QilError
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import put_over

Size = tuple[int, int]
"""Width and height in pixels."""
CONTRIBUTION = 1e-4
"""A layer that changes no value of the composite, in [0, 1], by more than this does not contribute to it."""


def visible_box(shows: Bool[np.ndarray, "y x"]) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom of the pixels that are set, right and bottom exclusive; None if none is set."""
    rows, columns = np.flatnonzero(shows.any(axis=1)), np.flatnonzero(shows.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def words(pixels: UInt8[np.ndarray, "y x 4"]) -> UInt32[np.ndarray, "y x"]:
    """Pixels as words of 32 bits, which numpy compares and rearranges several times faster."""
    return np.ascontiguousarray(pixels).view(np.uint32)[..., 0]


def contributing(
    layers: Sequence[BoxedLayer], size: Size, contribution: float = CONTRIBUTION
) -> tuple[list[BoxedLayer], list[tuple[BoxedLayer, str]]]:
    """The layers that contribute to the composite, cut to their visible box, and the others, each with the reason.

    From the bottom up, a layer contributes if the composite with it differs from that without it, given the layers kept
    below it and all layers above it. So the composite is unchanged when all others are removed together.
    """
    through = _through(layers, size)
    below = np.zeros((size[1], size[0], 4), np.float32)
    kept, gone = [], []
    for layer, lets in zip(layers, through, strict=True):
        if not layer.pixels[..., 3].any():
            gone.append((layer, "empty"))
            continue
        ground = below[layer.window]
        alpha = layer.pixels[..., 3:].astype(np.float32) / 255
        target = np.ones((*alpha.shape[:2], 4), np.float32)
        target[..., :3] = layer.pixels[..., :3].astype(np.float32) / 255
        weight = alpha * (lets[..., None].astype(np.float32) / 65535)
        if float(np.abs(weight * (target - ground)).max()) > contribution:
            kept.append(trimmed(layer))
            put_over(below, layer)
        else:
            gone.append((layer, "hidden" if float(weight.max()) <= contribution else "same as below it"))
    return kept, gone


def trimmed(layer: BoxedLayer) -> BoxedLayer:
    """A layer cut to the box of its positive alpha.

    Raises:
      QilError: if alpha is 0 everywhere.
    """
    box = visible_box(layer.pixels[..., 3] > 0)
    if box is None:
        raise QilError(f"layer '{layer.name}' shows nothing: it has no box")
    left, top, right, bottom = box
    pixels = np.ascontiguousarray(layer.pixels[top:bottom, left:right])
    return dataclasses.replace(layer, pixels=pixels, left=layer.left + left, top=layer.top + top)


def visible_pixels(layers: Sequence[BoxedLayer], size: Size) -> Float[np.ndarray, " l"]:
    """Visible area of each layer in pixels: the sum of its alpha times the transmittance of the layers above."""
    through = _through(layers, size)
    shown = [(x.pixels[..., 3] / 255 * (t / 65535)).sum() for x, t in zip(layers, through, strict=True)]
    return np.array(shown, np.float64)


def shown_pixels(layers: Sequence[BoxedLayer], size: Size) -> list[int]:
    """The number of pixels in which each layer is visible at all."""
    through = _through(layers, size)
    return [int(np.count_nonzero(x.pixels[..., 3] * (t > 0))) for x, t in zip(layers, through, strict=True)]


def _through(layers: Sequence[BoxedLayer], size: Size) -> list[np.ndarray]:
    """Transmittance of the layers above each layer, in its box: uint16, rounded up so that 0 is exactly 0."""
    left = np.ones((size[1], size[0]), np.float32)
    through = []
    for layer in reversed(layers):
        through.append(np.ceil(left[layer.window] * 65535).astype(np.uint16))
        left[layer.window] *= 1 - layer.pixels[..., 3].astype(np.float32) / 255
    return through[::-1]
