"""Place and shape of one layer. A layer of which nothing is visible stays as it is.

Layers lie on the pixels of the canvas: moves are whole pixels, and the box of a resized layer is too. What "the layer"
is, its centre for instance, is measured by the box of its visible pixels, so that colour under alpha 0 does not count.
"""

import dataclasses
import math
from enum import StrEnum

import numpy as np
from jaxtyping import UInt8, UInt32

from qil_jax.editing.stack import EditError, Layer, empty
from qil_jax.layers.boxed_layer import Box, intersection, window
from qil_jax.layers.filtering import Rectangle, resampled, rotated
from qil_jax.layers.visibility import words

MOST_PIXELS = 2**26
"""The largest box of a layer, in pixels."""


class Axis(StrEnum):
    """The direction in which a flip reverses a layer."""

    HORIZONTAL = "horizontal"
    VERTICAL = "vertical"


class Anchor(StrEnum):
    """The point of a layer's box that stays where it is."""

    CENTRE = "centre"
    LEFT = "left"
    RIGHT = "right"
    TOP = "top"
    BOTTOM = "bottom"
    TOP_LEFT = "top-left"
    TOP_RIGHT = "top-right"
    BOTTOM_LEFT = "bottom-left"
    BOTTOM_RIGHT = "bottom-right"


class Fit(StrEnum):
    """The way in which a picture fills a box of another aspect ratio."""

    CONTAIN = "contain"  # all of the picture is there
    COVER = "cover"  # the whole box is filled
    STRETCH = "stretch"


def moved(layer: Layer, dx: int, dy: int) -> Layer:
    """The layer moved by whole pixels; its pixels are shared."""
    return dataclasses.replace(layer, left=layer.left + dx, top=layer.top + dy)


def flipped(layer: Layer, axis: Axis) -> Layer:
    """The layer mirrored in its own box, exactly."""
    left, top, right, bottom = layer.visible or layer.box
    if axis is Axis.HORIZONTAL:
        pixels = _pixels(words(layer.pixels)[:, ::-1])
        return _redrawn(layer, pixels, left + right - layer.box[2], layer.top)
    pixels = _pixels(words(layer.pixels)[::-1])
    return _redrawn(layer, pixels, layer.left, top + bottom - layer.box[3])


def turned(layer: Layer, degrees: float) -> Layer:
    """The layer rotated clockwise about its centre; exactly by multiples of 90 degrees.

    A layer whose width and height are not both even or both odd has its centre half a pixel off after a quarter turn:
    the pixel grid allows no other, and a second quarter turn puts it right.

    Raises:
      EditError: if the layer would be too large.
    """
    quarters, rest = divmod(degrees % 360, 90)
    if rest == 0:
        for _ in range(int(quarters)):
            layer = _quarter_turned(layer)
        return layer
    box = layer.visible
    if box is None:
        return layer
    width, height = box[2] - box[0], box[3] - box[1]
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    require_size(math.ceil(width * cos + height * sin), math.ceil(width * sin + height * cos), "degrees")
    pixels, place = rotated(layer.pixels[window(layer.box, box)], degrees, (width / 2, height / 2))
    return trimmed(_redrawn(layer, pixels, box[0] + place[0], box[1] + place[1]))


def scaled(layer: Layer, scale: float, anchor: Anchor) -> Layer:
    """The layer resized by a factor, its box rounded to whole pixels; otherwise as `resized`."""
    box = layer.visible
    if box is None:
        return layer
    width, height = (max(1, round((end - start) * scale)) for start, end in zip(box[:2], box[2:], strict=True))
    return _resized(layer, box, (width, height), anchor, "scale")


def resized(layer: Layer, width: int | None, height: int | None, anchor: Anchor) -> Layer:
    """The layer with its box resized, without fringes; a side that is not given follows the other one.

    A side of the box along which alpha is nowhere below half of the layer's largest, as of a photograph or a panel,
    stays sharp. Any other is blended with the transparency beyond: then faint pixels lie just outside of the new box.

    Raises:
      EditError: if the layer would be too large.
    """
    box = layer.visible
    if box is None:
        return layer
    w, h = box[2] - box[0], box[3] - box[1]
    if width is None:
        width = w if height is None else max(1, round(w * height / h))
    return _resized(layer, box, (width, height or max(1, round(h * width / w))), anchor, "width, height")


def cropped(layer: Layer, box: Box) -> Layer:
    """The layer without what lies outside a box of the canvas."""
    part = intersection(layer.box, box)
    if part is None:
        return empty(layer)
    return _redrawn(layer, layer.pixels[window(layer.box, part)], part[0], part[1])


def replaced(layer: Layer, picture: UInt8[np.ndarray, "y x 4"], fit: Fit, canvas: tuple[int, int]) -> Layer:
    """The layer with a picture in its box instead; an empty layer gets it in the box of the canvas."""
    left, top, right, bottom = layer.visible or (0, 0, *canvas)
    width, height = right - left, bottom - top
    h, w = picture.shape[:2]
    part: Rectangle | None = None
    if fit is Fit.CONTAIN:
        scale = min(width / w, height / h)
        size = max(1, round(w * scale)), max(1, round(h * scale))
        left, top = left + (width - size[0]) // 2, top + (height - size[1]) // 2
    else:
        size = width, height
    if fit is Fit.COVER:
        scale = max(width / w, height / h)
        across, down = min(w, width / scale), min(h, height / scale)
        part = (w - across) / 2, (h - down) / 2, (w + across) / 2, (h + down) / 2
    return _redrawn(layer, picture if size == (w, h) else resampled(picture, size, part), left, top)


def trimmed(layer: Layer) -> Layer:
    """The layer cut to its visible pixels."""
    box = layer.visible
    return empty(layer) if box is None else cropped(layer, box)


def require_size(width: int, height: int, field: str) -> None:
    """Refuse boxes of more than `MOST_PIXELS`.

    Raises:
      EditError: naming the field.
    """
    if width * height > MOST_PIXELS:
        raise EditError(f"the layer would have {width}x{height} pixels, {MOST_PIXELS} at most", field)


def _resized(layer: Layer, box: Box, size: tuple[int, int], anchor: Anchor, field: str) -> Layer:
    old = box[2] - box[0], box[3] - box[1]
    require_size(*size, field)
    left = box[0] + _kept(old[0] - size[0], anchor, "left", "right")
    top = box[1] + _kept(old[1] - size[1], anchor, "top", "bottom")
    if size == old:
        return moved(layer, left - box[0], top - box[1])
    pixels = layer.pixels[window(layer.box, box)]
    alpha = pixels[..., 3]
    soft = [2 * int(side.min()) < int(alpha.max()) for side in (alpha[:, 0], alpha[0], alpha[:, -1], alpha[-1])]
    scale = [new / now for new, now in zip(size, old, strict=True)] * 2
    more = [math.ceil(max(1, s)) if blends else 0 for blends, s in zip(soft, scale, strict=True)]
    spare = [x / s for x, s in zip(more, scale, strict=True)]  # the same in the old pixels
    reach = [max(1, 1 / s) for s in scale]
    pad = [math.ceil(x + r) if x else 0 for x, r in zip(spare, reach, strict=True)]
    padded = np.pad(pixels, ((pad[1], pad[3]), (pad[0], pad[2]), (0, 0)))
    part = pad[0] - spare[0], pad[1] - spare[1], pad[0] + old[0] + spare[2], pad[1] + old[1] + spare[3]
    whole = size[0] + more[0] + more[2], size[1] + more[1] + more[3]
    return trimmed(_redrawn(layer, resampled(padded, whole, part), left - more[0], top - more[1]))


def _kept(spare: int, anchor: Anchor, start: str, end: str) -> int:
    """By how much an edge moves when a side shrinks by `spare` pixels."""
    words = anchor.split("-")
    return 0 if start in words else spare if end in words else spare // 2


def _quarter_turned(layer: Layer) -> Layer:
    left, top, right, bottom = layer.visible or layer.box
    shift = int(((right - left) - (bottom - top)) / 2)  # towards 0, so that a turn of the result shifts back
    pixels = _pixels(np.rot90(words(layer.pixels), -1))
    # (x, y) of a corner becomes (left + shift + bottom - y, top - shift + x - left)
    return _redrawn(layer, pixels, left + shift + bottom - layer.box[3], top - shift + layer.left - left)


def _pixels(words: UInt32[np.ndarray, "y x"]) -> UInt8[np.ndarray, "y x 4"]:
    """The inverse of `words`."""
    return np.ascontiguousarray(words)[..., None].view(np.uint8)


def _redrawn(layer: Layer, pixels: UInt8[np.ndarray, "y x 4"], left: int, top: int) -> Layer:
    return dataclasses.replace(layer, pixels=pixels, left=left, top=top)
