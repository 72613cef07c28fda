"""Colours of a layer's visible pixels; alpha stays, and so does colour under alpha 0."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from qil_jax.editing.stack import Layer

LUMA = (0.2126, 0.7152, 0.0722)
"""Shares of red, green and blue in the brightness of a colour (ITU-R BT.709)."""
Planes = Sequence[Float32[np.ndarray, "y x"]]
"""Red, green and blue in [0, 255]."""


def hue_rotated(layer: Layer, degrees: float) -> Layer:
    """Hue turned by an angle; saturation and lightness, both as in HSL, stay. Gray has no hue."""
    return _recoloured(layer, lambda planes: _turned(planes, degrees / 60))


def tinted(layer: Layer, colour: str, amount: float) -> Layer:
    """Colours mixed with one, #rrggbb: `amount` 0 leaves them, 1 gives that colour."""
    share, targets = np.float32(amount), [np.float32(value) for value in rgb(colour)]
    return _recoloured(layer, lambda planes: [x + share * (y - x) for x, y in zip(planes, targets, strict=True)])


def gradient_mapped(layer: Layer, stops: Sequence[tuple[float, str]]) -> Layer:
    """Brightness replaced by a gradient's colour there.

    Args:
      layer: the layer.
      stops: brightness in [0, 1], ascending, and colour, #rrggbb. Between stops colours are mixed in proportion.
    """
    places = [255 * at for at, _ in stops]
    tables = [np.interp(np.arange(256), places, values) for values in zip(*(rgb(c) for _, c in stops), strict=True)]

    def mapped(planes: Planes) -> Planes:
        luma = sum(np.float32(share) * x for share, x in zip(LUMA, planes, strict=True))
        level = np.rint(luma).astype(np.uint8)
        return [table.astype(np.float32)[level] for table in tables]

    return _recoloured(layer, mapped)


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue in [0, 255] of #rrggbb."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def _recoloured(layer: Layer, change: Callable[[Planes], Planes]) -> Layer:
    shows = layer.pixels[..., 3] > 0
    pixels = layer.pixels.copy()
    for c, plane in enumerate(change([pixels[..., c].astype(np.float32) for c in range(3)])):
        np.copyto(pixels[..., c], _rounded(plane), where=shows)
    return dataclasses.replace(layer, pixels=pixels)


def _rounded(plane: Float32[np.ndarray, "y x"]) -> UInt8[np.ndarray, "y x"]:
    return np.rint(np.clip(plane, 0, 255)).astype(np.uint8)


def _turned(planes: Planes, sixths: float) -> Planes:
    """Planes with their hue turned by sixths of a circle.

    A channel is largest - chroma * clip(2 - d, 0, 1). d is the distance of hue + n from 2 on the circle of 6, and n
    is 5, 3, 1 for red, green, blue: the formula of HSV, with which HSL shares hue and largest and smallest channel.
    """
    red, green, blue = planes
    largest = np.maximum(np.maximum(red, green), blue)
    chroma = largest - np.minimum(np.minimum(red, green), blue)
    per = np.divide(1, chroma, out=np.zeros_like(chroma), where=chroma > 0)
    hue = np.where(  # from -1 to 5
        largest == red,
        (green - blue) * per,
        np.where(largest == green, 2 + (blue - red) * per, 4 + (red - green) * per),
    )
    out = []
    for n in (5, 3, 1):
        distance = np.abs(np.abs(hue + np.float32((n + sixths) % 6 - 5)) - 3)  # from 2 or 8, whichever is nearer
        out.append(largest - chroma * np.clip(2 - distance, 0, 1))
    return out
