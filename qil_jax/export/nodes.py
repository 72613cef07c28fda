"""Layers and groups as documents of other programs hold them: nested, each layer a box somewhere on one canvas."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import UInt8

from qil_jax.errors import QilError
from qil_jax.export.bounds import require_pixels
from qil_jax.export.placed import PlacedPicture
from qil_jax.layers.boxed_layer import BoxedLayer, recut
from qil_jax.layers.layer_tree import Group, LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.profiles import SRGB
from qil_jax.layers.visibility import visible_box, words

Leaf = TypeVar("Leaf", bound=BoxedLayer | PlacedPicture, covariant=True)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GroupNode(Generic[Leaf]):
    """A group of a document: its name, and what it holds, bottom to top."""

    name: str
    nodes: tuple["Leaf | GroupNode[Leaf]", ...]


Node = BoxedLayer | GroupNode[BoxedLayer]
"""A node of a document that is written."""
ReadNode = BoxedLayer | PlacedPicture | GroupNode[BoxedLayer | PlacedPicture]
"""A node of a document that is read."""


def nodes_of(tree: LayerTree, left: int = 0, top: int = 0, *, has_hidden_colour: bool = False) -> tuple[Node, ...]:
    """The layers of a tree in tight boxes; the tree's canvas lies at `left`, `top` on the document's.

    Args:
      has_hidden_colour: whether a box also holds the colours that lie under alpha 0; without, it holds those only that
        the box of what is visible happens to cover.
    """
    found: list[Node] = []
    for i, (pixels, name) in enumerate(zip(tree.layered.layers, tree.layered.names, strict=True)):
        if i in tree.groups:
            group = tree.groups[i]
            inner = nodes_of(group.tree, left + group.left, top + group.top, has_hidden_colour=has_hidden_colour)
            found.append(GroupNode(name=name, nodes=inner))
            continue
        layer = tight(pixels, name, has_hidden_colour=has_hidden_colour)
        found.append(dataclasses.replace(layer, left=left + layer.left, top=top + layer.top))
    return tuple(found)


def tight(pixels: UInt8[np.ndarray, "y x 4"], name: str, *, has_hidden_colour: bool = False) -> BoxedLayer:
    """A layer cut to the box of its visible pixels, or of all that is not zero; one pixel if there are none."""
    shows = words(pixels) > 0 if has_hidden_colour else pixels[..., 3] > 0
    left, top, right, bottom = visible_box(shows) or (0, 0, 1, 1)
    return BoxedLayer(pixels=np.ascontiguousarray(pixels[top:bottom, left:right]), left=left, top=top, name=name)


def leaves(nodes: Sequence["Leaf | GroupNode[Leaf]"]) -> list[Leaf]:
    """All layers, bottom to top."""
    return [x for node in nodes for x in (leaves(node.nodes) if isinstance(node, GroupNode) else [node])]


def tree_of(nodes: Sequence[ReadNode], size: tuple[int, int], caption: str = "", *, profile: bytes = SRGB) -> LayerTree:
    """The tree of a document whose canvas has `size`, width and height. Groups lie on canvases of that size.

    Groups without layers are left out. The layers have colours of an ICC profile, which is not SRGB only if none is a
    PlacedPicture.

    Raises:
      QilError: if there is no layer, or there are more than `bounds` allows.
    """
    nodes = _filled(nodes)
    require_pixels(_pixels(nodes, math.prod(size)))
    return _tree(nodes, size, caption, profile)


def _filled(nodes: Sequence[ReadNode]) -> list[ReadNode]:
    """The nodes without groups that hold no layer."""
    found: list[ReadNode] = []
    for node in nodes:
        if not isinstance(node, GroupNode):
            found.append(node)
        elif inner := _filled(node.nodes):
            found.append(GroupNode(name=node.name, nodes=tuple(inner)))
    return found


def _pixels(nodes: Sequence[ReadNode], canvas: int) -> int:
    """Pixels of all layers and groups, of which each takes a canvas, and of the pictures that are decoded for them."""
    inner = sum(_pixels(node.nodes, canvas) for node in nodes if isinstance(node, GroupNode))
    own = sum(math.prod(node.file_size) for node in nodes if isinstance(node, PlacedPicture))
    return canvas * len(nodes) + own + inner


def _tree(nodes: Sequence[ReadNode], size: tuple[int, int], caption: str, profile: bytes) -> LayerTree:
    layers: list[np.ndarray] = []
    names, groups = [], {}
    for node in nodes:
        if isinstance(node, GroupNode):
            inner = _tree(node.nodes, size, "", profile)
            groups[len(layers)] = Group(tree=inner, left=0, top=0)
            layers.append(inner.leaves().composite_8bit())
        else:
            layer = node.layer(size) if isinstance(node, PlacedPicture) else node
            layers.append(recut(layer.pixels, layer.box, (0, 0, *size)))
        names.append(node.name)
    if not layers:
        raise QilError("no layers in it")
    stack = LayeredImage(layers=np.stack(layers), names=tuple(names), caption=caption, profile=profile)
    return LayerTree(layered=stack, groups=groups)
