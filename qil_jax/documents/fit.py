"""A stack of pieces, bottom to top, that is adjusted until it reproduces a target image.

Photoshop's groups, masks, clipping and blend modes express more than alpha blending of layers in order does. Each of
them is rendered by the compositor once, as a target; `fit` then changes the stack of plain layers, in as few pixels as
possible, so that its alpha blend is the target.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from qil_jax.layers.boxed_layer import Box, intersection, window
from qil_jax.layers.visibility import visible_box

TOLERANCE = 2.5 / 255
"""Difference of premultiplied colour or alpha above which a pixel is repaired: more than three roundings to 8 bits."""
VISIBLE = 0.5 / 255
"""Alpha above which a pixel counts as visible: half a unit of 8 bits."""


@dataclasses.dataclass(kw_only=True, eq=False)
class Piece:
    """A layer in its own box, in the colour space of its document, straight alpha.

    Attributes:
      colour: colour channels in the document's colour mode, 8 bits each.
      alpha: straight alpha channel, 8 bits.
      left: x coordinate of the box's left edge on the canvas, in pixels.
      top: y coordinate of the box's upper edge on the canvas, in pixels.
      name: name of the layer.
    """

    colour: UInt8[np.ndarray, "y x c"]
    alpha: UInt8[np.ndarray, "y x 1"]
    left: int
    top: int
    name: str

    @property
    def box(self) -> Box:
        """Left, top, right, bottom of the piece on the canvas."""
        height, width = self.alpha.shape[:2]
        return self.left, self.top, self.left + width, self.top + height


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Raster:
    """An image of a rectangle of the canvas, in floating point.

    Attributes:
      colour: straight colour, in [0, 1].
      alpha: opacity of each pixel, in [0, 1].
      box: rectangle of the canvas that the image covers.
    """

    colour: Float[np.ndarray, "y x c"]
    alpha: Float[np.ndarray, "y x 1"]
    box: Box


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Extent of the adjustments that `fit` made to a stack.

    Attributes:
      repaired: share of the visible pixels in which a piece was overwritten.
      added: share of the visible pixels that a new piece shows.
    """

    repaired: float
    added: float


def piece_of(raster: Raster, name: str) -> Piece | None:
    """An image as a piece, cut to the box of its visible pixels; None if there are none."""
    alpha = np.rint(np.clip(raster.alpha, 0, 1) * 255).astype(np.uint8)
    box = visible_box(alpha[..., 0] > 0)
    if box is None:
        return None
    left, top, right, bottom = box
    cut = np.s_[top:bottom, left:right]
    colour = np.rint(np.clip(raster.colour[cut], 0, 1) * 255).astype(np.uint8)
    left, top = raster.box[0] + left, raster.box[1] + top
    return Piece(colour=colour, alpha=alpha[cut].copy(), left=left, top=top, name=name)


def flatten(pieces: Sequence[Piece], box: Box, channels: int) -> Raster:
    """The alpha blend of the pieces over transparency. Memory: the box in fp32, independent of the number of pieces."""
    height, width = box[3] - box[1], box[2] - box[0]
    premultiplied = np.zeros((height, width, channels), np.float32)
    alpha = np.zeros((height, width, 1), np.float32)
    for piece in pieces:
        common = intersection(piece.box, box)
        if common is None:
            continue
        inside, here = window(piece.box, common), window(box, common)
        over = piece.alpha[inside].astype(np.float32) / 255
        premultiplied[here] *= 1 - over
        premultiplied[here] += over / 255 * piece.colour[inside]
        alpha[here] += over * (1 - alpha[here])
    colour = np.divide(premultiplied, alpha, out=premultiplied, where=alpha > 0)
    return Raster(colour=colour, alpha=alpha, box=box)


def recolour(pieces: Sequence[Piece], box: Box, change: Callable[[Raster], Raster]) -> None:
    """Apply `change` to the colours of all pieces within the box, as if each were an opaque image of its own."""
    for piece in pieces:
        common = intersection(piece.box, box)
        if common is None:
            continue
        inside = window(piece.box, common)
        colour = piece.colour[inside].astype(np.float32) / 255
        opaque = np.ones((*colour.shape[:2], 1), np.float32)
        changed = change(Raster(colour=colour, alpha=opaque, box=common)).colour
        piece.colour[inside] = np.rint(np.clip(changed, 0, 1) * 255).astype(np.uint8)


def fit(pieces: list[Piece], wanted: Raster, name: str) -> Fit:
    """Adjust the stack until its alpha blend is `wanted` within the box of `wanted`.

    Three steps, each where the previous one left a difference: alphas are lowered so that every piece keeps its share
    of a lower total alpha; where the stack lacks alpha, the missing colour and alpha go to a new piece at the bottom;
    and in pixels that still differ the topmost piece takes the wanted colour and alpha.

    Args:
      pieces: the stack, bottom to top, which is changed in place.
      wanted: the target image.
      name: name given to a piece that is added.

    Returns:
      The shares of pixels that were repaired or added.
    """
    channels = wanted.colour.shape[2]
    visible = max(1, np.count_nonzero(wanted.alpha > VISIBLE))
    now = flatten(pieces, wanted.box, channels)
    factor = np.divide(wanted.alpha, now.alpha, out=np.ones_like(now.alpha), where=now.alpha > 0)
    if (np.abs(np.minimum(factor, 1) - 1) * now.alpha > VISIBLE).any():
        _attenuate(pieces, wanted.box, np.minimum(factor, 1))
        now = flatten(pieces, wanted.box, channels)
    missing = np.where(wanted.alpha - now.alpha > TOLERANCE, wanted.alpha - now.alpha, 0)
    added = np.count_nonzero(missing) / visible
    if added:
        rest = wanted.colour * wanted.alpha - now.colour * now.alpha
        colour = np.divide(rest, missing, out=np.zeros_like(rest), where=missing > 0)
        alpha = missing / np.maximum(1 - now.alpha, VISIBLE)
        bottom = piece_of(Raster(colour=colour, alpha=np.minimum(alpha, 1), box=wanted.box), name)
        if bottom is not None:
            pieces.insert(0, bottom)
        now = flatten(pieces, wanted.box, channels)
    off = np.abs(now.colour * now.alpha - wanted.colour * wanted.alpha).max(-1, keepdims=True) > TOLERANCE
    off |= np.abs(now.alpha - wanted.alpha) > TOLERANCE
    if off.any():
        _repair(pieces, wanted, off)
    return Fit(repaired=np.count_nonzero(off) / visible, added=added)


def _attenuate(pieces: Sequence[Piece], box: Box, factor: Float[np.ndarray, "y x 1"]) -> None:
    """Scale the contribution of every piece to the composite by `factor`.

    A piece contributes its alpha times the transmittance of the pieces above; from the top down, the alpha that gives
    the scaled contribution follows from the transmittance of the changed pieces above.
    """
    through, through_now = np.ones_like(factor), np.ones_like(factor)
    for piece in reversed(pieces):
        common = intersection(piece.box, box)
        if common is None:
            continue
        inside, here = window(piece.box, common), window(box, common)
        alpha = piece.alpha[inside].astype(np.float32) / 255
        share = alpha * through[here] * factor[here]
        left = through_now[here]
        new = np.divide(share, left, out=np.where(factor[here] > 0, alpha, 0), where=left > VISIBLE)
        rounded = np.rint(np.clip(new, 0, 1) * 255)
        piece.alpha[inside] = rounded.astype(np.uint8)
        through[here] *= 1 - alpha
        through_now[here] *= 1 - rounded / 255


def _repair(pieces: Sequence[Piece], wanted: Raster, off: np.ndarray) -> None:
    """Overwrite the topmost piece of each pixel in `off` by `wanted`, and clear those below where it is translucent."""
    colour = np.rint(np.clip(wanted.colour, 0, 1) * 255).astype(np.uint8)
    alpha = np.rint(np.clip(wanted.alpha, 0, 1) * 255).astype(np.uint8)
    waiting, done = off.copy(), np.zeros_like(off)
    for piece in reversed(pieces):
        common = intersection(piece.box, wanted.box)
        if common is None:
            continue
        inside, here = window(piece.box, common), window(wanted.box, common)
        hit = waiting[here] & (piece.alpha[inside] > 0)
        below = done[here] & (alpha[here] < 255)
        np.copyto(piece.alpha[inside], 0, where=below)
        np.copyto(piece.alpha[inside], alpha[here], where=hit)
        np.copyto(piece.colour[inside], colour[here], where=hit)
        done[here] |= hit
        waiting[here] &= ~hit
