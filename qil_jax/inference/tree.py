"""Recursion: the layers of a decomposition, decomposed again."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from qil_jax.choices import Edges, Split
from qil_jax.inference.request import Decomposer, Decomposition, Request, Settings
from qil_jax.layers.boxed_layer import Box, recut
from qil_jax.layers.exact import exact
from qil_jax.layers.layer_tree import Group, LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.profiles import SRGB, converted
from qil_jax.layers.refinement import at_size
from qil_jax.layers.selection import select_layers
from qil_jax.layers.visibility import visible_box

MARGIN = 1 / 16
"""Clear margin around a layer's content, relative to its longer side."""
NARROWEST = 1 / 4
"""Minimum ratio of the sides of what is split; narrower layers get a wider clear margin."""
SMALLEST, FEWEST = 0.01, 8
"""A layer is split if its content's box covers this share of the canvas, and has as many pixels along each side."""

Policy = Callable[[LayeredImage], Sequence[int]]
"""Which layers of a stack to split, by index."""


POLICIES: Mapping[Split, Policy] = {
    Split.ALL: lambda stack: range(len(stack.names)),
    Split.LARGEST: lambda stack: [int(np.argmax(stack.layers[..., 3].sum(axis=(1, 2), dtype=np.int64)))],
}


def split_layers(
    stacks: Sequence[LayeredImage],
    requests: Sequence[Request],
    decomposer: Decomposer,
    settings: Settings,
    *,
    depth: int,
    policy: Policy = POLICIES[Split.ALL],
    edges: Edges = Edges.REFINED,
    batch: int = 1,
) -> list[LayerTree]:
    """Decompose the layers of stacks, the layers of these, and so on. All stacks of a level share batches.

    A layer is cut out with a clear margin, keeps its alpha, and is decomposed with the options of its stack's request
    but for the prompt, which the model writes where it can. Superfluous layers are taken out (`select_layers`), and the
    others are fitted so that they blend to the layer within 1/255 (`exact`). Layers that are empty, small, or of one
    part are not split.

    Args:
      stacks: what `decomposer` made of the requests, of any size.
      requests: the request of each stack.
      decomposer: pipeline that decomposes a batch.
      settings: sampler settings of all batches.
      depth: number of levels, the stacks themselves included.
      policy: choice of the layers to split.
      edges: how parts are brought to the size of the layer that they are part of.
      batch: number of decompositions per batch.

    Returns:
      A tree for each stack.
    """
    roots = [_Node(layered, request) for layered, request in zip(stacks, requests, strict=True)]
    nodes = roots
    for _ in range(depth - 1):
        cuts = [cut for node in nodes for i in policy(node.layered) if (cut := _Cut.of(node, i)) is not None]
        nodes = []
        for start in range(0, len(cuts), batch):
            group = cuts[start : start + batch]
            made = decomposer.decompose([cut.request() for cut in group], settings)
            filled = [cut.filled(found, edges) for cut, found in zip(group, made, strict=True)]
            nodes += [node for node in filled if node is not None]
    return [root.tree() for root in roots]


@dataclasses.dataclass(eq=False)
class _Node:
    """A stack whose layers become groups."""

    layered: LayeredImage
    request: Request
    groups: "dict[int, tuple[_Node, Box]]" = dataclasses.field(default_factory=dict)

    def tree(self) -> LayerTree:
        grown = {i: Group(tree=node.tree(), left=box[0], top=box[1]) for i, (node, box) in self.groups.items()}
        return LayerTree(layered=self.layered, groups=grown)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """A layer of a node, and the box in which it is decomposed."""

    node: _Node
    index: int
    box: Box

    @classmethod
    def of(cls, node: _Node, index: int) -> "_Cut | None":
        """The cut around a layer's content; None if the layer is empty or too small to be split."""
        found = visible_box(node.layered.layers[index, ..., 3] > 0)
        if found is None:
            return None
        left, top, right, bottom = found
        wide, high = right - left, bottom - top
        canvas = node.layered.size[0] * node.layered.size[1]
        if min(wide, high) < FEWEST or wide * high < SMALLEST * canvas:
            return None
        if (wide, high) == node.layered.size:
            return cls(node, index, found)
        longer = max(wide, high)
        margin = round(MARGIN * longer)
        x, y = (margin + max(0, math.ceil((NARROWEST * longer - side) / 2)) for side in (wide, high))
        return cls(node, index, (left - x, top - y, right + x, bottom + y))

    def pixels(self) -> np.ndarray:
        return recut(self.node.layered.layers[self.index], (0, 0, *self.node.layered.size), self.box)

    def request(self) -> Request:
        pixels = converted(self.pixels(), self.node.layered.profile, SRGB)
        picture = Image.fromarray(np.ascontiguousarray(pixels), "RGBA")
        return dataclasses.replace(self.node.request, image=picture, prompt=None, latents=None)

    def filled(self, made: Decomposition, edges: Edges) -> _Node | None:
        """The node of the layer's own stack, put into its place; None if that is one layer only."""
        pixels = self.pixels()
        stack = select_layers(at_size(made.layered.with_profile(self.node.layered.profile), pixels, edges)[0], pixels)
        if len(stack.names) < 2:
            return None
        node = _Node(exact(stack, pixels)[0], self.node.request)
        self.node.groups[self.index] = node, self.box
        return node
