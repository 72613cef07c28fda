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
    high, wide = rows[0][0].shape[:2]
    across = max(len(row) for row in rows)
    sheet = Image.new("RGB", (across * (wide + GAP) + GAP, len(rows) * (high + GAP) + GAP), (255, 255, 255))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            cell = Image.fromarray(over_colour(picture, GROUND)).convert("RGB")
            sheet.paste(cell, (GAP + x * (wide + GAP), GAP + y * (high + GAP)))
    return sheet


def png_bytes(image: Image.Image, side: int, resampling: Image.Resampling = Image.Resampling.BICUBIC) -> bytes:
    """An image as PNG without its metadata, reduced in place until its longer side is at most `side` pixels."""
    image.thumbnail((side, side), resampling)
    image.info.clear()
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
