"""Contact sheets and thumbnails."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from qil_jax.layers.compositing import over_colour

GROUND = (0.77, 0.77, 0.77)
"""Colour that shows through transparent images, in [0, 1]."""
GAP = 4
"""Pixels between images."""


def grid(rows: Sequence[Sequence[UInt8[np.ndarray, "y x 4"]]]) -> Image.Image:
    """A contact sheet: rows of straight RGBA images of one size, over grey."""
    return arranged([[Image.fromarray(over_colour(cell, GROUND)).convert("RGB") for cell in row] for row in rows])


def arranged(
    rows: Sequence[Sequence[Image.Image]], *, gap: int = GAP, background: tuple[int, int, int] = (255, 255, 255)
) -> Image.Image:
    """RGB pictures in rows, each row as high and all columns as wide as the largest picture, `gap` pixels between."""
    wide = max((cell.width for row in rows for cell in row), default=0)
    heights = [max((cell.height for cell in row), default=0) for row in rows]
    across = max(len(row) for row in rows)
    sheet = Image.new("RGB", (across * (wide + gap) + gap, sum(heights) + gap * (len(rows) + 1)), background)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for x, cell in enumerate(row):
            sheet.paste(cell, (gap + x * (wide + gap), top))
        top += height + gap
    return sheet


def png_bytes(image: Image.Image, side: int, resampling: Image.Resampling = Image.Resampling.BICUBIC) -> bytes:
    """An image as PNG without its metadata, reduced in place until its longer side is at most `side` pixels."""
    image.thumbnail((side, side), resampling)
    image.info.clear()
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
