"""Cropping and resizing of all layers of a record together, each in its box.

Colour is filtered premultiplied, so that colours under alpha 0 never bleed into an edge. The filter has no negative
lobes: others leave a haze of alpha 1 to 5 around every shape, so that layers that never touched would overlap. A record
of the target size stays unchanged.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from qil_jax.layers.boxed_layer import Box, BoxedLayer, intersection, window
from qil_jax.layers.visibility import trimmed

FILTER, SUPPORT = Image.Resampling.HAMMING, 1
"""The filter, and its support in pixels of the coarser of the two images."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crop:
    """The rectangle of a canvas that cropping keeps.

    Attributes:
      left: x coordinate of the rectangle's left edge, in pixels of the canvas.
      top: y coordinate of the rectangle's upper edge, in pixels of the canvas.
      width: width of the rectangle in pixels of the canvas, possibly fractional.
      height: height of the rectangle in pixels of the canvas, possibly fractional.
    """

    left: int
    top: int
    width: float
    height: float


def sides(ratio: float, resolution: int, multiple: int) -> tuple[int, int]:
    """Width and height of about resolution^2 pixels at an aspect ratio, rounded to `multiple`; 0 if too narrow."""
    wide = math.sqrt(resolution * resolution * ratio)
    return round(wide / multiple) * multiple, round(wide / ratio / multiple) * multiple


def choose_crop(source: tuple[int, int], target: tuple[int, int], rng: np.random.Generator | None) -> Crop:
    """The largest part of a canvas with the target's aspect ratio, at a random place or, without `rng`, the centre."""
    shrink = min(source[0] / target[0], source[1] / target[1])
    width, height = target[0] * shrink, target[1] * shrink
    spare = [math.floor(round(total - part, 6)) for total, part in zip(source, (width, height), strict=True)]
    left, top = ((s // 2 if rng is None else int(rng.integers(s + 1))) for s in spare)
    return Crop(left=left, top=top, width=width, height=height)


def resized(
    layers: Sequence[BoxedLayer], size: tuple[int, int], *, crop: Crop, target: tuple[int, int]
) -> list[BoxedLayer]:
    """The layers, cropped and resized to the target, each cut to the box of its visible pixels.

    Args:
      layers: layers on a canvas of `size` (width, height).
      crop: rectangle of the canvas that is kept.
      target: width and height of the result.

    Returns:
      The layers that are still visible, in order; at least one, which may be transparent. Colour under alpha 0 is 0.
    """
    scale = target[0] / crop.width
    moved = [_moved(layer, size, crop, target, scale) for layer in layers]
    kept = [layer for layer in moved if layer is not None]
    return kept or [BoxedLayer(pixels=np.zeros((1, 1, 4), np.uint8), left=0, top=0, name=layers[0].name)]


def _moved(
    layer: BoxedLayer, size: tuple[int, int], crop: Crop, target: tuple[int, int], scale: float
) -> BoxedLayer | None:
    """One layer on the new canvas; None if none of it is visible there."""
    left, top, right, bottom = layer.box
    if scale == 1:
        here = left - crop.left, top - crop.top, right - crop.left, bottom - crop.top
        inside = intersection(here, (0, 0, *target))
        if inside is None:
            return None
        return _shown(layer.pixels[window(here, inside)], inside, layer.name)
    reach = SUPPORT * max(1.0, scale)
    wide = (
        math.floor((left - crop.left) * scale - reach),
        math.floor((top - crop.top) * scale - reach),
        math.ceil((right - crop.left) * scale + reach),
        math.ceil((bottom - crop.top) * scale + reach),
    )
    new = intersection(wide, (0, 0, *target))
    if new is None:
        return None
    wanted = (
        crop.left + new[0] / scale,
        crop.top + new[1] / scale,
        min(crop.left + new[2] / scale, size[0]),
        min(crop.top + new[3] / scale, size[1]),
    )
    margin = math.ceil(SUPPORT * max(1.0, 1 / scale)) + 1
    patch: Box = (
        max(0, math.floor(wanted[0]) - margin),
        max(0, math.floor(wanted[1]) - margin),
        min(size[0], math.ceil(wanted[2]) + margin),
        min(size[1], math.ceil(wanted[3]) + margin),
    )
    image = _image(_cut(layer, patch))
    part = (wanted[0] - patch[0], wanted[1] - patch[1], wanted[2] - patch[0], wanted[3] - patch[1])
    return _shown(np.asarray(image.resize((new[2] - new[0], new[3] - new[1]), FILTER, part)), new, layer.name)


def _cut(layer: BoxedLayer, patch: Box) -> np.ndarray:
    """The pixels of a layer within a patch of its canvas."""
    common = intersection(layer.box, patch)
    if common == patch:
        return np.ascontiguousarray(layer.pixels[window(layer.box, patch)])
    out = np.zeros((patch[3] - patch[1], patch[2] - patch[0], 4), np.uint8)
    if common is not None:
        out[window(patch, common)] = layer.pixels[window(layer.box, common)]
    return out


def _image(pixels: np.ndarray) -> Image.Image:
    """Pixels as a Pillow image; opaque ones as RGBX, for which it need not premultiply, in a third of the time."""
    mode = "RGBX" if pixels[..., 3].min() == 255 else "RGBA"
    return Image.frombuffer(mode, pixels.shape[1::-1], pixels.tobytes(), "raw", mode, 0, 1)


def _shown(pixels: np.ndarray, box: Box, name: str) -> BoxedLayer | None:
    alpha = pixels[..., 3]
    if not alpha.any():
        return None
    if not alpha.all():
        pixels = np.where(alpha[..., None] > 0, pixels, np.uint8(0))
    return trimmed(BoxedLayer(pixels=pixels, left=box[0], top=box[1], name=name))
