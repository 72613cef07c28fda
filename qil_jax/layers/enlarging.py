"""Stored layers at the size of the picture that they decompose: which pictures these may be, and layers of layers."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from qil_jax.choices import MULTIPLE, Edges
from qil_jax.layers.boxed_layer import Box, recut
from qil_jax.layers.exact import exact
from qil_jax.layers.layer_tree import Group, LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.pictures import LARGEST_SIDE, ImageError, Picture, read_bytes, read_picture
from qil_jax.layers.refinement import Refinement, at_size
from qil_jax.layers.resize import sides


def open_picture(path: Path) -> Picture:
    """A picture file of any kind with its colour profile, as `pictures.read_picture` gives it.

    Raises:
      ImageError: if the file is no picture, or a side of it has more than `LARGEST_SIDE` pixels.
    """

    def check(size: tuple[int, int]) -> None:
        if max(size) > LARGEST_SIDE:
            raise ImageError(f"{path}: {size[0]}x{size[1]} pixels; scale it down to at most {LARGEST_SIDE} a side")

    return read_picture(read_bytes(path), str(path), check)


def require_picture_of(layers: tuple[int, int], picture: tuple[int, int], name: str) -> None:
    """Check by its size that a picture may be the one that layers decompose, and that it has more pixels than they.

    The aspect ratio of layers is the picture's, to a pixel, or that of a model's size bucket for such a picture, whose
    sides are multiples of 32 pixels.

    Args:
      layers: width and height of the layers in pixels.
      picture: width and height of the picture in pixels.
      name: what the message calls the picture.

    Raises:
      ImageError: if it is not.
    """
    sizes = f"{name}: {picture[0]}x{picture[1]} pixels, and the layers have {layers[0]}x{layers[1]}"
    if not _is_bucket(layers, picture) and not _is_scaled(layers, picture):
        raise ImageError(f"{sizes}, of another shape: give the whole picture that was decomposed")
    if picture[0] <= layers[0] and picture[1] <= layers[1]:
        raise ImageError(f"{sizes}: give the larger picture that was decomposed")


def tree_at_size(
    tree: LayerTree, picture: UInt8[np.ndarray, "y x 4"], edges: Edges
) -> tuple[LayerTree, Refinement | None]:
    """A tree at the size of the picture that it decomposes, and how its stack was refined; see `refinement.at_size`.

    What a layer consists of gets the size and the edges of that layer, and is fitted so that it blends to the layer
    within 1/255 (`exact`), as recursion does it.

    Args:
      tree: the layers.
      picture: straight RGBA of any size, the picture that they decompose.
      edges: how they are brought to its size.
    """
    layered, report = at_size(tree.layered, picture, edges)
    return _regrouped(tree, layered, edges), report


def _regrouped(tree: LayerTree, layered: LayeredImage, edges: Edges) -> LayerTree:
    """A tree whose own stack has another size already."""
    scale = [new / old for new, old in zip(layered.size, tree.layered.size, strict=True)]
    groups = {}
    for i, group in tree.groups.items():
        box = _scaled(group.box, scale)
        pixels = recut(layered.layers[i], (0, 0, *layered.size), box)
        stack = exact(at_size(group.tree.layered, pixels, edges)[0], pixels)[0]
        groups[i] = Group(tree=_regrouped(group.tree, stack, edges), left=box[0], top=box[1])
    return LayerTree(layered=layered, groups=groups)


def _scaled(box: Box, scale: list[float]) -> Box:
    """A box with its sides at the nearest pixels of another size, not empty."""
    left, top, right, bottom = (round(side * times) for side, times in zip(box, 2 * scale, strict=True))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _is_bucket(layers: tuple[int, int], picture: tuple[int, int]) -> bool:
    """Whether layers have the size of a model's bucket for a picture, at any resolution."""
    ratio = picture[0] / picture[1]
    return any(sides(ratio, side, MULTIPLE) == layers for side in range(MULTIPLE, max(layers) + MULTIPLE, MULTIPLE))


def _is_scaled(layers: tuple[int, int], picture: tuple[int, int]) -> bool:
    """Whether layers have the aspect ratio of a picture, but for the rounding of their sides to pixels."""
    wide, high = layers
    return min(abs(wide - high * picture[0] / picture[1]), abs(high - wide * picture[1] / picture[0])) <= 1
