"""Operations on the layers of a stack and on its canvas."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from qil_jax.choices import Edges
from qil_jax.editing import geometry
from qil_jax.editing.operation import Address, Distance, Length, Margin, Name, OneLayer, Operation, Place, picture_at
from qil_jax.editing.stack import MOST_LAYERS, EditError, Stack, boxed
from qil_jax.layers.enlarging import require_picture_of
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.pictures import LARGEST_SIDE, ImageError
from qil_jax.layers.refinement import at_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reorder(Operation):
    """Moves a layer to another place in the stack."""

    op: Literal["reorder"] = "reorder"
    layer: OneLayer
    to: Place | None = None
    """Place in the stack as it is then, from 1 at the bottom."""
    above: Address | None = None
    """The layer directly above which it comes."""
    below: Address | None = None
    """The layer directly below which it comes."""

    def __post_init__(self) -> None:
        if [self.to, self.above, self.below].count(None) != 2:
            raise EditError("give one of to, above and below")
        if self.layer in (self.above, self.below):
            raise EditError("a layer cannot be above or below itself")

    def apply(self, stack: Stack) -> Stack:
        """The reordered stack.

        Raises:
          EditError: if there is no such layer or place.
        """
        index = stack.index(self.layer)
        layer = stack.layers[index]
        others = stack.with_layers([*stack.layers[:index], *stack.layers[index + 1 :]])
        if self.above is not None:
            place = others.index(self.above, "above") + 1
        elif self.below is not None:
            place = others.index(self.below, "below")
        else:
            place = (self.to or 1) - 1
            if place > len(others.layers):
                raise EditError(f"must be from 1 to {len(stack.layers)}, got {self.to}", "to")
        return stack.with_layers([*others.layers[:place], layer, *others.layers[place:]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicate(Operation):
    """Puts a copy of a layer directly above it. The copy gets the next number that no layer had."""

    op: Literal["duplicate"] = "duplicate"
    layer: OneLayer
    name: Name | None = None
    """Name of the copy; otherwise NAME copy, or NAME copy 2, 3, ... where that is taken."""
    dx: Distance = 0
    """Pixels by which the copy is moved to the right."""
    dy: Distance = 0
    """Pixels by which the copy is moved downwards."""

    def apply(self, stack: Stack) -> Stack:
        """The stack with the copy.

        Raises:
          EditError: if there is no such layer, or there are `MOST_LAYERS` already.
        """
        index = stack.index(self.layer)
        if len(stack.layers) >= MOST_LAYERS:
            raise EditError(f"the stack has {len(stack.layers)} layers, {MOST_LAYERS} at most: delete some before")
        layer = stack.layers[index]
        taken, name, count = {other.name for other in stack.layers}, self.name or f"{layer.name} copy", 1
        while self.name is None and name in taken:
            count += 1
            name = f"{layer.name} copy {count}"
        copy = dataclasses.replace(geometry.moved(layer, self.dx, self.dy), name=name, number=stack.next_number)
        layers = (*stack.layers[: index + 1], copy, *stack.layers[index + 1 :])
        return dataclasses.replace(stack, layers=layers, next_number=stack.next_number + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delete(Operation):
    """Deletes a layer. Its number is not given to another."""

    op: Literal["delete"] = "delete"
    layer: OneLayer

    def apply(self, stack: Stack) -> Stack:
        """The stack without the layer.

        Raises:
          EditError: if there is no such layer, or it is the last one.
        """
        index = stack.index(self.layer)
        if len(stack.layers) == 1:
            raise EditError("is the only layer: a stack needs one", "layer")
        return stack.with_layers([*stack.layers[:index], *stack.layers[index + 1 :]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropCanvas(Operation):
    """Makes a rectangle of the canvas the canvas. What of layers lies outside is kept, until the result is written."""

    op: Literal["crop_canvas"] = "crop_canvas"
    left: Margin
    """x coordinate of the rectangle's left edge, in pixels of the canvas."""
    top: Margin
    """y coordinate of its upper edge."""
    width: Length
    """Its width in pixels."""
    height: Length
    """Its height in pixels."""

    def apply(self, stack: Stack) -> Stack:
        """The stack on the smaller canvas.

        Raises:
          EditError: if the rectangle does not lie on the canvas.
        """
        width, height = stack.size
        for field, end, side in (("width", self.left + self.width, width), ("height", self.top + self.height, height)):
            if end > side:
                raise EditError(f"the rectangle ends at {end}, outside of the canvas of {width}x{height}", field)
        return _on_canvas(stack, -self.left, -self.top, (self.width, self.height))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtendCanvas(Operation):
    """Adds transparent margins to the canvas."""

    op: Literal["extend_canvas"] = "extend_canvas"
    left: Margin = 0
    """Pixels that are added on the left."""
    top: Margin = 0
    """Pixels that are added above."""
    right: Margin = 0
    """Pixels that are added on the right."""
    bottom: Margin = 0
    """Pixels that are added below."""

    def apply(self, stack: Stack) -> Stack:
        """The stack on the larger canvas.

        Raises:
          EditError: if the canvas would be too large.
        """
        width, height = stack.size[0] + self.left + self.right, stack.size[1] + self.top + self.bottom
        _require_canvas(width, height)
        return _on_canvas(stack, self.left, self.top, (width, height))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refine(Operation):
    """Gives canvas and layers the size and the edges of their picture. What of layers lies outside the canvas goes."""

    op: Literal["refine"] = "refine"
    picture: Name
    """Path of the picture's file, from the script's folder. It is larger than the canvas and of the same shape."""

    def apply(self, stack: Stack) -> Stack:
        """The stack at the picture's size. Opacity counts as 1 while edges are looked for, and stays.

        Raises:
          EditError: if the file is no picture or, by its size, not the one that the layers decompose, or is too large.
        """
        picture = self._picture_of(stack)
        opaque = stack.with_layers([dataclasses.replace(layer, opacity=1.0) for layer in stack.layers])
        layered = LayeredImage(layers=opaque.canvases(), names=tuple(layer.name for layer in stack.layers))
        found, _ = at_size(layered, picture, Edges.REFINED)
        layers = [
            dataclasses.replace(boxed(pixels, layer.name, layer.number), opacity=layer.opacity)
            for pixels, layer in zip(found.layers, stack.layers, strict=True)
        ]
        return dataclasses.replace(stack.with_layers(layers), size=found.size)

    def outlined(self, stack: Stack) -> Stack:
        """The stack with the picture's size; the picture is read.

        Raises:
          EditError: as of `apply`.
        """
        height, width = self._picture_of(stack).shape[:2]
        return dataclasses.replace(stack, size=(width, height))

    def _picture_of(self, stack: Stack) -> UInt8[np.ndarray, "y x 4"]:
        """The picture, which may be that of the stack."""
        picture = picture_at(self.picture)
        size = picture.shape[1], picture.shape[0]
        try:
            require_picture_of(stack.size, size, self.picture)
        except ImageError as error:
            raise EditError(str(error), "picture") from error
        _require_canvas(*size, "picture")
        return picture


def _require_canvas(width: int, height: int, field: str = "") -> None:
    """Refuse canvases that are too large."""
    if max(width, height) > LARGEST_SIDE or width * height > geometry.MOST_PIXELS:
        limits = f"{LARGEST_SIDE} a side and {geometry.MOST_PIXELS} pixels at most"
        raise EditError(f"the canvas would have {width}x{height} pixels: {limits}", field)


def _on_canvas(stack: Stack, dx: int, dy: int, size: tuple[int, int]) -> Stack:
    layers = tuple(geometry.moved(layer, dx, dy) for layer in stack.layers)
    return dataclasses.replace(stack, layers=layers, size=size)
