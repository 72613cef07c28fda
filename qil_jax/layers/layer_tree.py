"""Layers of layers: a stack in which a layer may itself be a stack."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import UInt8

from qil_jax.errors import QilError
from qil_jax.layers.boxed_layer import Box, recut
from qil_jax.layers.layered_image import LayeredImage


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayerTree:
    """A stack, and what some of its layers consist of.

    Attributes:
      layered: the stack. A layer that is a group equals the blend of its layers, within 1/255.
      groups: the group of a layer, by the layer's index.
    """

    layered: LayeredImage
    groups: Mapping[int, "Group"] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [i for i in self.groups if not 0 <= i < len(self.layered.names)]
        if unknown:
            raise QilError(f"groups at layers {unknown}: the stack has layers 0 to {len(self.layered.names) - 1}")

    @classmethod
    def of(cls, stack: "LayeredImage | LayerTree") -> "LayerTree":
        """A tree as it is, or a stack as a tree without groups."""
        return stack if isinstance(stack, LayerTree) else cls(layered=stack)

    @property
    def depth(self) -> int:
        """Number of levels: 1 for a stack without groups."""
        return 1 + max((group.tree.depth for group in self.groups.values()), default=0)

    def leaves(self) -> LayeredImage:
        """All layers that are no groups on the stack's canvas, bottom to top; names say the way: "sky / cloud"."""
        if not self.groups:
            return self.layered
        found = list(self._leaves())
        return dataclasses.replace(
            self.layered, layers=np.stack([pixels for pixels, _ in found]), names=tuple(name for _, name in found)
        )

    def with_leaves(self, layers: UInt8[np.ndarray, "l y x 4"]) -> "LayerTree":
        """The tree with other pixels of its leaves; groups become their blends.

        Args:
          layers: as many as `leaves` gives, on the stack's canvas; what lies outside of a part's canvas is lost.
        """
        return self._filled(iter(layers))

    def with_profile(self, profile: bytes) -> "LayerTree":
        """The tree with the colours of another profile, groups included; see `LayeredImage.with_profile`."""
        groups = {i: dataclasses.replace(x, tree=x.tree.with_profile(profile)) for i, x in self.groups.items()}
        return LayerTree(layered=self.layered.with_profile(profile), groups=groups)

    def _leaves(self) -> Iterator[tuple[np.ndarray, str]]:
        for i, (pixels, name) in enumerate(zip(self.layered.layers, self.layered.names, strict=True)):
            if i not in self.groups:
                yield pixels, name
                continue
            for inner, below in self.groups[i].tree._leaves():
                yield self.groups[i].put(inner, self.layered.size), f"{name} / {below}"

    def _filled(self, layers: Iterator[np.ndarray]) -> "LayerTree":
        stack, groups = [], {}
        for i in range(len(self.layered.names)):
            if i not in self.groups:
                stack.append(next(layers))
                continue
            old = self.groups[i]
            cut = (old.cut(next(layers)) for _ in old.tree._leaves())
            groups[i] = dataclasses.replace(old, tree=old.tree._filled(cut))
            stack.append(groups[i].put(groups[i].tree.layered.composite_8bit(), self.layered.size))
        return LayerTree(layered=dataclasses.replace(self.layered, layers=np.stack(stack)), groups=groups)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """What a layer consists of.

    Attributes:
      tree: the layer's own stack, on a canvas that may be smaller or stick out.
      left: x coordinate of the left edge of that canvas on the layer's canvas, in pixels.
      top: y coordinate of its upper edge.
    """

    tree: LayerTree
    left: int
    top: int

    @property
    def box(self) -> Box:
        """Left, top, right, bottom of the group's canvas on the layer's canvas."""
        width, height = self.tree.layered.size
        return self.left, self.top, self.left + width, self.top + height

    def put(self, pixels: UInt8[np.ndarray, "h w 4"], size: tuple[int, int]) -> UInt8[np.ndarray, "y x 4"]:
        """Pixels of the group's canvas on the layer's canvas of `size`, width and height; clear elsewhere."""
        return recut(pixels, self.box, (0, 0, *size))

    def cut(self, pixels: UInt8[np.ndarray, "y x 4"]) -> UInt8[np.ndarray, "h w 4"]:
        """The part of the layer's canvas that the group's canvas shows; clear where it sticks out."""
        return recut(pixels, (0, 0, pixels.shape[1], pixels.shape[0]), self.box)
