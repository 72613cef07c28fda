"""Alpha blending of layers and pictures, and the PSNR between two pictures."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from qil_jax.layers.boxed_layer import BoxedLayer


def composite(layers: Sequence[BoxedLayer], size: tuple[int, int]) -> Float[np.ndarray, "y x 4"]:
    """Layers alpha-blended bottom to top on a clear canvas of (width, height): premultiplied RGBA in [0, 1], fp32."""
    canvas = np.zeros((size[1], size[0], 4), np.float32)
    for layer in layers:
        put_over(canvas, layer)
    return canvas


def put_over(canvas: Float[np.ndarray, "y x 4"], layer: BoxedLayer) -> None:
    """Alpha-blend a layer onto a premultiplied canvas in place."""
    over = layer.pixels.astype(np.float32)
    over /= 255
    alpha = _on_all_channels(over[..., 3])
    part = canvas[layer.window]
    part *= 1 - alpha
    alpha[..., 3] = 1
    over *= alpha
    part += over


def composite_8bit(layers: Sequence[BoxedLayer], size: tuple[int, int]) -> UInt8[np.ndarray, "y x 4"]:
    """The composite as straight 8-bit RGBA."""
    canvas = composite(layers, size)
    divisor = np.maximum(_on_all_channels(canvas[..., 3]), np.finfo(np.float32).tiny)
    divisor[..., 3] = 1
    canvas /= divisor
    np.clip(canvas, 0, 1, out=canvas)
    canvas *= 255
    return np.rint(canvas, out=canvas).astype(np.uint8)


def _on_all_channels(alpha: Float[np.ndarray, "y x"]) -> Float[np.ndarray, "y x 4"]:
    """Alpha four times over: numpy is several times faster on whole arrays than where it stretches a last axis of 1."""
    return np.repeat(alpha, 4, axis=1).reshape(*alpha.shape, 4)


def over_white(picture: UInt8[np.ndarray, "y x 4"]) -> UInt8[np.ndarray, "y x 4"]:
    """A straight RGBA picture on opaque white."""
    return over_colour(picture, (1.0, 1.0, 1.0))


def over_colour(picture: UInt8[np.ndarray, "y x 4"], colour: Sequence[float]) -> UInt8[np.ndarray, "y x 4"]:
    """A straight RGBA picture on an opaque solid colour, whose components lie in [0, 1]."""
    blend = blended(picture, np.asarray(colour, np.float32) * 255)
    return np.concatenate([np.rint(blend).astype(np.uint8), np.full_like(picture[..., 3:], 255)], -1)


def blended(
    picture: UInt8[np.ndarray, "y x 4"], colour: Sequence[int] | np.ndarray, dtype: type = np.float32
) -> Float[np.ndarray, "y x 3"]:
    """A straight RGBA picture alpha-blended over a solid colour, both in [0, 255], unrounded."""
    alpha = picture[..., 3:].astype(dtype) / 255
    return picture[..., :3] * alpha + np.asarray(colour, dtype) * (1 - alpha)


def psnr(a: UInt8[np.ndarray, "y x 4"], b: UInt8[np.ndarray, "y x 4"]) -> float:
    """dB between two straight RGBA pictures, over black or over white, whichever is lower; 99 for equal ones."""
    if a.shape != b.shape:
        return 0.0
    errors = []
    for ground in (0.0, 1.0):
        flat = [(x[..., :3].astype(np.float32) / 255 - ground) * (x[..., 3:].astype(np.float32) / 255) for x in (a, b)]
        errors.append(float(np.mean(np.square(flat[0] - flat[1]), dtype=np.float64)))
    return min(99.0, decibels(max(errors)))


def decibels(error: float) -> float:
    """PSNR of a mean squared error of values in [0, 1]; infinite for 0."""
    return float(-10 * np.log10(error)) if error else float("inf")
