"""The state that editing changes: layers on a canvas, each with a number that it keeps."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from qil_jax.errors import QilError
from qil_jax.host_memory import require_memory
from qil_jax.layers.boxed_layer import Box, BoxedLayer
from qil_jax.layers.compositing import composite_8bit
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.visibility import visible_box, words

MOST_LAYERS = 256
"""The number of layers up to which operations add some."""
COMPOSITE_BYTES = 144
"""Bytes a pixel that blending and writing take for a while: 128 with 20 layers that cover their canvas."""
RGBA = 4
"""Bytes of a pixel."""


class EditError(QilError):
    """An operation cannot be carried out.

    Attributes:
      field: the operation's field that is wrong; empty if it is none in particular.
    """

    def __init__(self, message: str, field: str = ""):
        super().__init__(message)
        self.field = field


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Layer(BoxedLayer):
    """A layer that is edited. Its pixels cannot be written to; it may lie anywhere on the canvas or outside.

    Attributes:
      number: the number that the layer keeps however the stack is reordered, from 1.
      opacity: factor of alpha in [0, 1], applied when the layer is shown or written.
    """

    number: int
    opacity: float = 1.0

    def __post_init__(self) -> None:
        pixels = self.pixels.view()
        pixels.flags.writeable = False
        object.__setattr__(self, "pixels", pixels)

    @property
    def visible(self) -> Box | None:
        """The box of its pixels of positive alpha on the canvas, whatever its opacity; None if there are none."""
        box = visible_box(self.pixels[..., 3] > 0)
        if box is None:
            return None
        return self.left + box[0], self.top + box[1], self.left + box[2], self.top + box[3]

    def shown(self) -> BoxedLayer:
        """The layer with its opacity in its alpha, rounded to 8 bits; unchanged at opacity 1."""
        pixels = self.pixels
        if self.opacity != 1:
            pixels = pixels.copy()
            pixels[..., 3] = np.rint(np.arange(256) * self.opacity).astype(np.uint8)[pixels[..., 3]]
        return BoxedLayer(pixels=pixels, left=self.left, top=self.top, name=self.name)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Layers on a canvas, bottom to top. It is never changed: an operation makes another, which shares what it keeps.

    Attributes:
      layers: layers of any sizes and places, at least one.
      size: width and height of the canvas in pixels.
      next_number: number of the next layer that is made.
    """

    layers: tuple[Layer, ...]
    size: tuple[int, int]
    next_number: int

    @classmethod
    def of(cls, layered: LayeredImage) -> "Stack":
        """The layers of an image, numbered from 1 at the bottom, each cut to the box of what is not zero."""
        pairs = zip(layered.layers, layered.names, strict=True)
        layers = tuple(boxed(pixels, name, number) for number, (pixels, name) in enumerate(pairs, start=1))
        return cls(layers=layers, size=layered.size, next_number=len(layers) + 1)

    def to_layered_image(self, like: LayeredImage) -> LayeredImage:
        """What the canvas shows of each layer, on the whole canvas; caption, source and the rest are those of `like`.

        Opacity is multiplied into alpha. A layer that was not edited has the pixels with which it came.
        """
        return dataclasses.replace(like, layers=self.canvases(), names=tuple(layer.name for layer in self.layers))

    def canvases(self) -> UInt8[np.ndarray, "l y x 4"]:
        """What the canvas shows of each layer, bottom to top, on the whole canvas: straight RGBA, with its opacity."""
        canvases = np.zeros((len(self.layers), self.size[1], self.size[0], 4), np.uint8)
        for canvas, layer in zip(canvases, self.layers, strict=True):
            inside = layer.within(self.size)
            if isinstance(inside, Layer):
                canvas[inside.window] = inside.shown().pixels
        return canvases

    def composite_8bit(self) -> UInt8[np.ndarray, "y x 4"]:
        """What the canvas shows: straight 8-bit RGBA."""
        return composite_8bit([layer.shown() for layer in self.layers], self.size)

    def require_writable(self) -> None:
        """Check that this host's memory holds what `to_layered_image` makes of the stack, and its composite.

        Raises:
          EditError: with the required and the available memory.
        """
        width, height = self.size
        needed = width * height * (RGBA * len(self.layers) + COMPOSITE_BYTES)
        _require(needed, f"a result of {len(self.layers)} layers of {width}x{height} pixels")

    def require_held(self) -> None:
        """Check that this host's memory holds the layers, of which those that were only moved or copied share pixels.

        Raises:
          EditError: with the required and the available memory.
        """
        sizes = {layer.pixels.__array_interface__["data"][0]: layer.pixels.nbytes for layer in self.layers}
        _require(sum(sizes.values()), f"this stack of {len(self.layers)} layers")

    def index(self, address: int | str, field: str = "layer") -> int:
        """The index from the bottom, from 0, of the layer with this number or this name.

        Raises:
          EditError: if there is no such layer, or several of the name; the message lists what there is.
        """
        if isinstance(address, int):
            found = [i for i, layer in enumerate(self.layers) if layer.number == address]
        else:
            found = [i for i, layer in enumerate(self.layers) if layer.name == address]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = " and ".join(str(self.layers[i].number) for i in found)
            raise EditError(f"{address!r} is the name of layers {numbers}: give a number", field)
        there = ", ".join(f"{layer.number} {layer.name!r}" for layer in self.layers)
        deleted = isinstance(address, int) and 0 < address < self.next_number
        raise EditError(f"layer {address!r} {'was deleted' if deleted else 'is none'}; there are {there}", field)

    def with_layer(self, index: int, layer: Layer) -> "Stack":
        """The stack with another layer at an index."""
        return self.with_layers([*self.layers[:index], layer, *self.layers[index + 1 :]])

    def with_layers(self, layers: Sequence[Layer]) -> "Stack":
        """The stack with other layers."""
        return dataclasses.replace(self, layers=tuple(layers))


def _require(count: int, what: str) -> None:
    try:
        require_memory(count, what, "make it smaller")
    except QilError as error:
        raise EditError(str(error)) from error


def empty(layer: Layer) -> Layer:
    """The layer without a pixel that shows."""
    return dataclasses.replace(layer, pixels=np.zeros((1, 1, 4), np.uint8))


def boxed(pixels: UInt8[np.ndarray, "y x 4"], name: str, number: int) -> Layer:
    """A layer cut to the box outside of which all bytes are 0, so that no colour under alpha 0 is lost."""
    left, top, right, bottom = visible_box(words(pixels) != 0) or (0, 0, 1, 1)
    return Layer(pixels=pixels[top:bottom, left:right].copy(), left=left, top=top, name=name, number=number)
