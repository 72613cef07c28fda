"""Layers cut to the box of their visible pixels, so that documents with hundreds of layers fit into memory."""

import dataclasses

import numpy as np
from jaxtyping import UInt8

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the canvas; right and bottom are outside."""


def intersection(a: Box, b: Box) -> Box | None:
    """The intersection of two boxes; None if it is empty."""
    box = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return box if box[0] < box[2] and box[1] < box[3] else None


def window(of: Box, box: Box) -> tuple[slice, slice]:
    """Rows and columns of `box` in an array that covers `of`."""
    return slice(box[1] - of[1], box[3] - of[1]), slice(box[0] - of[0], box[2] - of[0])


def recut(pixels: UInt8[np.ndarray, "h w 4"], of: Box, to: Box) -> UInt8[np.ndarray, "y x 4"]:
    """Pixels that cover the box `of`, cut and filled up with clear ones to the box `to`."""
    out = np.zeros((to[3] - to[1], to[2] - to[0], 4), np.uint8)
    common = intersection(of, to)
    if common is not None:
        out[window(to, common)] = pixels[window(of, common)]
    return out


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BoxedLayer:
    """A layer stored as a rectangle of its canvas; all pixels outside are transparent.

    Attributes:
      pixels: straight RGBA values of the rectangle, 8 bits each.
      left: x coordinate of the rectangle's left edge on the canvas, in pixels; an edited layer may lie outside.
      top: y coordinate of the rectangle's upper edge on the canvas, in pixels.
      name: name of the layer.
    """

    pixels: UInt8[np.ndarray, "y x 4"]
    left: int
    top: int
    name: str

    @property
    def box(self) -> Box:
        """Left, top, right, bottom of the layer on the canvas."""
        height, width = self.pixels.shape[:2]
        return self.left, self.top, self.left + width, self.top + height

    @property
    def window(self) -> tuple[slice, slice]:
        """Slices of the rows and columns of the canvas that the layer covers; it must lie within."""
        left, top, right, bottom = self.box
        return slice(top, bottom), slice(left, right)

    def within(self, size: tuple[int, int]) -> "BoxedLayer | None":
        """The part on a canvas of `size` (width, height), the layer itself if that is all; None if there is none."""
        part = intersection(self.box, (0, 0, *size))
        if part is None or part == self.box:
            return None if part is None else self
        return dataclasses.replace(self, pixels=self.pixels[window(self.box, part)], left=part[0], top=part[1])
