"""Export of a layered image as a Photoshop document."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from psd_tools import PSDImage

from qil_jax.errors import QilError
from qil_jax.layers.compositing import over_white
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.visibility import visible_box

LARGEST_SIDE = 30_000
"""Limit of the PSD format in pixels."""
LONGEST_NAME = 255
"""Limit of the PSD format in characters; longer names are cut."""


def write_psd(layered: LayeredImage, file: Path) -> None:
    """Write layers in tight boxes with their names, and their composite as the merged preview.

    An empty layer is written as one transparent pixel. Colour under alpha 0 is kept inside a layer's box.

    Raises:
      QilError: if the canvas is larger than the format allows.
      FileExistsError: if the file exists.
    """
    width, height = layered.size
    if max(layered.size) > LARGEST_SIDE:
        raise QilError(f"{file}: {width}x{height} pixels do not fit a PSD (at most {LARGEST_SIDE} a side)")
    document = PSDImage.new("RGBA", (width, height), depth=8)
    for pixels, name in zip(layered.layers, layered.names, strict=True):
        top, left, bottom, right = alpha_box(pixels)
        picture = Image.fromarray(np.ascontiguousarray(pixels[top:bottom, left:right]), "RGBA")
        # Non-Latin names fail at creation; assigned afterwards they are written as Unicode.
        layer = document.create_pixel_layer(picture, name="layer", top=top, left=left)
        layer.name = name[:LONGEST_NAME]
    record = document._record  # saving by the document would replace the preview by the library's own composite
    composite = layered.composite_8bit()
    # The format's convention for a merged picture with transparency: colour over white, alpha beside it.
    preview = np.concatenate([over_white(composite)[..., :3], composite[..., 3:]], axis=-1)
    record.image_data.set_data([preview[..., c].tobytes() for c in range(4)], record.header)
    info = record.layer_and_mask_information.layer_info
    assert info is not None
    info.layer_count = -abs(info.layer_count)  # negative: the preview's fourth channel is its transparency
    with file.open("xb") as stream:
        record.write(stream)


def alpha_box(pixels: UInt8[np.ndarray, "y x 4"]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the visible pixels; the box of one pixel if there are none."""
    left, top, right, bottom = visible_box(pixels[..., 3] > 0) or (0, 0, 1, 1)
    return top, left, bottom, right
