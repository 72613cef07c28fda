"""Small pictures: as bytes, and many as one."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from qil_jax.layers.compositing import over_colour

GROUND = (0.77, 0.77, 0.77)
GAP = 4


def grid(rows: Sequence[Sequence[UInt8[np.ndarray, "y x 4"]]]) -> Image.Image:
    """Rows of RGBA pictures of one size, over grey."""
    high, wide = rows[0][0].shape[:2]
    across = max(len(row) for row in rows)
    sheet = Image.new("RGB", (across * (wide + GAP) + GAP, len(rows) * (high + GAP) + GAP), (255, 255, 255))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            cell = Image.fromarray(over_colour(picture, GROUND)).convert("RGB")
            sheet.paste(cell, (GAP + x * (wide + GAP), GAP + y * (high + GAP)))
    return sheet


def png_bytes(image: Image.Image, side: int, resampling: Image.Resampling = Image.Resampling.BICUBIC) -> bytes:
    """A picture, made no larger than `side`, as PNG without its profile and other facts."""
    image.thumbnail((side, side), resampling)
    image.info.clear()
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
