"""Alpha blending of layers and images, and PSNR."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from qil_jax.layers.boxed_layer import BoxedLayer

PART = 1 << 16
"""Pixels that are blended at once: what a processor's caches hold of them."""
MOST_PSNR = 99.0
"""PSNR in dB that is assigned to equal images."""


def composite(layers: Sequence[BoxedLayer], size: tuple[int, int]) -> Float[np.ndarray, "y x 4"]:
    """Layers alpha-blended bottom to top on a clear canvas of `size` (width, height): premultiplied RGBA in [0, 1].

    Layers may be of any size and lie anywhere; what is outside the canvas does not count.
    """
    canvas = np.zeros((size[1], size[0], 4), np.float32)
    for layer in layers:
        put_over(canvas, layer)
    return canvas


def put_over(canvas: Float[np.ndarray, "y x 4"], layer: BoxedLayer) -> None:
    """Alpha-blend a layer onto a premultiplied canvas in place; what is outside the canvas does not count."""
    inside = layer.within((canvas.shape[1], canvas.shape[0]))
    if inside is None:
        return
    over = inside.pixels.astype(np.float32)
    over /= 255
    alpha = _on_all_channels(over[..., 3])
    part = canvas[inside.window]
    part *= 1 - alpha
    alpha[..., 3] = 1
    over *= alpha
    part += over


def composite_8bit(layers: Sequence[BoxedLayer], size: tuple[int, int]) -> UInt8[np.ndarray, "y x 4"]:
    """The composite as straight 8-bit RGBA. Memory beside it does not grow with the canvas."""
    width, height = size
    found = np.empty((height, width, 4), np.uint8)
    for rows in parts_of(height, width):
        shifted = [dataclasses.replace(layer, top=layer.top - rows.start) for layer in layers]
        canvas = composite(shifted, (width, rows.stop - rows.start))
        divisor = np.maximum(_on_all_channels(canvas[..., 3]), np.finfo(np.float32).tiny)
        divisor[..., 3] = 1
        canvas /= divisor
        np.clip(canvas, 0, 1, out=canvas)
        canvas *= 255
        found[rows] = np.rint(canvas, out=canvas)
    return found


def parts_of(height: int, width: int) -> Iterator[slice]:
    """Some rows of a canvas after others, as many as are blended quickest together."""
    count = max(1, PART // width)
    return (slice(top, min(top + count, height)) for top in range(0, height, count))


def _on_all_channels(alpha: Float[np.ndarray, "y x"]) -> Float[np.ndarray, "y x 4"]:
    """Alpha repeated on four channels: numpy multiplies whole arrays several times faster than it broadcasts."""
    return np.repeat(alpha, 4, axis=1).reshape(*alpha.shape, 4)


def blended(
    picture: UInt8[np.ndarray, "y x 4"], colour: Sequence[int] | Float[np.ndarray, "3"], dtype: type = np.float32
) -> Float[np.ndarray, "y x 3"]:
    """A straight RGBA image over an opaque solid colour, both in [0, 255], not rounded."""
    alpha = picture[..., 3:].astype(dtype) / 255
    return picture[..., :3] * alpha + np.asarray(colour, dtype) * (1 - alpha)


def over_white(picture: UInt8[np.ndarray, "y x 4"]) -> UInt8[np.ndarray, "y x 4"]:
    """A straight RGBA image over opaque white."""
    return over_colour(picture, (1.0, 1.0, 1.0))


def over_colour(picture: UInt8[np.ndarray, "y x 4"], colour: Sequence[float]) -> UInt8[np.ndarray, "y x 4"]:
    """A straight RGBA image over an opaque solid colour, whose three components lie in [0, 1]."""
    blend = blended(picture, np.asarray(colour, np.float32) * 255)
    return np.concatenate([np.rint(blend).astype(np.uint8), np.full_like(picture[..., 3:], 255)], -1)


def psnr(a: UInt8[np.ndarray, "y x 4"], b: UInt8[np.ndarray, "y x 4"]) -> float:
    """PSNR in dB of two straight RGBA images over black or over white, whichever is lower.

    The value is 99 at most, as for equal images, and 0 for images of different sizes.
    """
    if a.shape != b.shape:
        return 0.0
    errors = []
    for ground in (0.0, 1.0):
        flat = [(x[..., :3].astype(np.float32) / 255 - ground) * (x[..., 3:].astype(np.float32) / 255) for x in (a, b)]
        errors.append(float(np.mean(np.square(flat[0] - flat[1]), dtype=np.float64)))
    return min(MOST_PSNR, decibels(max(errors)))


def decibels(mean_square: float) -> float:
    """PSNR in dB for a mean square error of values in [0, 1]; infinite for 0."""
    return math.inf if mean_square == 0 else -10 * math.log10(mean_square)
