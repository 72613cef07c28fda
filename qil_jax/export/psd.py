"""Export of a layered image as a Photoshop document."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from psd_tools import PSDImage
from psd_tools.api.layers import GroupMixin
from psd_tools.constants import BlendMode

from qil_jax.errors import QilError
from qil_jax.layers.compositing import over_white
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.visibility import visible_box

LARGEST_SIDE = 30_000
"""Limit of the PSD format in pixels."""
LONGEST_NAME = 255
"""Limit of the PSD format in characters; longer names are cut."""


def write_psd(stack: LayeredImage | LayerTree, file: Path) -> None:
    """Write layers in tight boxes with their names, and their composite as the merged preview.

    Groups become groups. An empty layer is written as one transparent pixel. Colour under alpha 0 is kept inside a
    layer's box.

    Raises:
      QilError: if the canvas is larger than the format allows.
      FileExistsError: if the file exists.
    """
    tree = LayerTree.of(stack)
    width, height = tree.layered.size
    if max(width, height) > LARGEST_SIDE:
        raise QilError(f"{file}: {width}x{height} pixels do not fit a PSD (at most {LARGEST_SIDE} a side)")
    document = PSDImage.new("RGBA", (width, height), depth=8)
    _add(document, tree, 0, 0)
    record = document._record  # saving by the document would replace the preview by the library's own composite
    composite = tree.leaves().composite_8bit()
    # The format's convention for a merged picture with transparency: colour over white, alpha beside it.
    preview = np.concatenate([over_white(composite)[..., :3], composite[..., 3:]], axis=-1)
    record.image_data.set_data([preview[..., c].tobytes() for c in range(4)], record.header)
    info = record.layer_and_mask_information.layer_info
    assert info is not None
    info.layer_count = -abs(info.layer_count)  # negative: the preview's fourth channel is its transparency
    with file.open("xb") as stream:
        record.write(stream)


def _add(parent: GroupMixin, tree: LayerTree, left: int, top: int) -> None:
    """Add layers and groups to a document or a group; `left` and `top` place the tree's canvas on the document's."""
    for i, (pixels, name) in enumerate(zip(tree.layered.layers, tree.layered.names, strict=True)):
        # Non-Latin names fail at creation; assigned afterwards they are written as Unicode.
        if i in tree.groups:
            group = tree.groups[i]
            layer = parent.create_group(name="group", blend_mode=BlendMode.NORMAL)
            _add(layer, group.tree, left + group.left, top + group.top)
        else:
            y, x, bottom, right = alpha_box(pixels)
            picture = Image.fromarray(np.ascontiguousarray(pixels[y:bottom, x:right]), "RGBA")
            layer = parent.create_pixel_layer(picture, name="layer", top=top + y, left=left + x)
        layer.name = name[:LONGEST_NAME]


def alpha_box(pixels: UInt8[np.ndarray, "y x 4"]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the visible pixels; the box of one pixel if there are none."""
    left, top, right, bottom = visible_box(pixels[..., 3] > 0) or (0, 0, 1, 1)
    return top, left, bottom, right
