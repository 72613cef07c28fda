"""Operations on the pixels or the place of one layer."""

import dataclasses
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from qil_jax.editing import colours, geometry
from qil_jax.editing.geometry import Anchor, Axis, Fit
from qil_jax.editing.operation import (
    CONFIG,
    Angle,
    Colour,
    Distance,
    LayerOperation,
    Length,
    Name,
    Share,
    picture_at,
    problem_of,
)
from qil_jax.editing.stack import EditError, Layer, Stack


@dataclasses.dataclass(frozen=True, kw_only=True)
class Move(LayerOperation):
    """Moves a layer by whole pixels."""

    op: Literal["move"] = "move"
    dx: Distance = 0
    """Pixels to the right."""
    dy: Distance = 0
    """Pixels downwards."""

    def edited(self, layer: Layer, canvas: tuple[int, int]) -> Layer:
        """The moved layer."""
        return geometry.moved(layer, self.dx, self.dy)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resize(LayerOperation):
    """Resizes a layer to a factor, or to a width, a height or both."""

    op: Literal["resize"] = "resize"
    scale: Annotated[float, Field(gt=0, le=64)] | None = None
    """Factor of both sides."""
    width: Length | None = None
    """New width of its box in pixels; the aspect ratio is kept if there is no height."""
    height: Length | None = None
    """New height of its box in pixels; the aspect ratio is kept if there is no width."""
    anchor: Anchor = Anchor.CENTRE
    """The point of its box that stays where it is."""

    def __post_init__(self) -> None:
        if (self.scale is None) == (self.width is None and self.height is None):
            raise EditError("give either scale, or width, height or both")

    def edited(self, layer: Layer, canvas: tuple[int, int]) -> Layer:
        """The resized layer."""
        if self.scale is not None:
            return geometry.scaled(layer, self.scale, self.anchor)
        return geometry.resized(layer, self.width, self.height, self.anchor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotate(LayerOperation):
    """Rotates a layer about the centre of its box; by multiples of 90 degrees exactly."""

    op: Literal["rotate"] = "rotate"
    degrees: Angle
    """The angle, clockwise."""

    def edited(self, layer: Layer, canvas: tuple[int, int]) -> Layer:
        """The rotated layer."""
        return geometry.turned(layer, self.degrees)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flip(LayerOperation):
    """Mirrors a layer in its box."""

    op: Literal["flip"] = "flip"
    axis: Axis
    """horizontal swaps left and right, vertical swaps top and bottom."""

    def edited(self, layer: Layer, canvas: tuple[int, int]) -> Layer:
        """The mirrored layer."""
        return geometry.flipped(layer, self.axis)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hue(LayerOperation):
    """Turns the hue of a layer's colours; saturation and lightness (HSL) stay."""

    op: Literal["hue"] = "hue"
    degrees: Angle
    """The angle on the circle of hues: 120 makes red green, green blue and blue red."""

    def edited(self, layer: Layer, canvas: tuple[int, int]) -> Layer:
        """The recoloured layer."""
        return colours.hue_rotated(layer, self.degrees)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tint(LayerOperation):
    """Mixes a layer's colours with one colour."""

    op: Literal["tint"] = "tint"
    colour: Colour
    """The colour, as #rrggbb."""
    amount: Share
    """Share of the colour: 1 leaves nothing of the layer's own."""

    def edited(self, layer: Layer, canvas: tuple[int, int]) -> Layer:
        """The recoloured layer."""
        return colours.tinted(layer, self.colour, self.amount)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """A colour of a gradient and its place."""

    __pydantic_config__ = CONFIG | ConfigDict(json_schema_extra={})
    at: Share
    """Brightness that gets the colour: 0 is black, 1 is white."""
    colour: Colour
    """The colour, as #rrggbb."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientMap(LayerOperation):
    """Replaces the brightness (luma) of a layer's colours by the colours of a gradient."""

    op: Literal["gradient_map"] = "gradient_map"
    stops: Annotated[tuple[Stop, ...], Field(max_length=64, json_schema_extra={"minItems": 2})]
    """Colours by ascending brightness; between two of them they are mixed in proportion."""

    def __post_init__(self) -> None:
        places = [stop.at for stop in self.stops]
        if len(places) < 2 or places != sorted({*places}):
            raise EditError("two or more are needed, and their places (at) must ascend", "stops")

    def edited(self, layer: Layer, canvas: tuple[int, int]) -> Layer:
        """The recoloured layer."""
        return colours.gradient_mapped(layer, [(stop.at, stop.colour) for stop in self.stops])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opacity(LayerOperation):
    """Sets a layer's opacity. Its pixels stay; alpha is multiplied once, when the layer is written."""

    op: Literal["opacity"] = "opacity"
    opacity: Share
    """Factor of alpha; it replaces an earlier one, so that 1 gives the layer back."""

    def edited(self, layer: Layer, canvas: tuple[int, int]) -> Layer:
        """The layer with its opacity."""
        return dataclasses.replace(layer, opacity=float(self.opacity))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crop(LayerOperation):
    """Clears what of a layer lies outside a rectangle of the canvas."""

    op: Literal["crop"] = "crop"
    left: Distance
    """x coordinate of the rectangle's left edge, in pixels of the canvas."""
    top: Distance
    """y coordinate of its upper edge."""
    width: Length
    """Its width in pixels."""
    height: Length
    """Its height in pixels."""

    def edited(self, layer: Layer, canvas: tuple[int, int]) -> Layer:
        """The cropped layer."""
        return geometry.cropped(layer, (self.left, self.top, self.left + self.width, self.top + self.height))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replace(LayerOperation):
    """Puts a picture in the place of a layer, resized to its box. Name, number and opacity stay."""

    op: Literal["replace"] = "replace"
    picture: Name
    """Path of a picture file, from the script's folder."""
    fit: Fit = Fit.CONTAIN
    """contain shows all of the picture, cover fills the box, stretch does both and loses the aspect ratio."""

    def edited(self, layer: Layer, canvas: tuple[int, int]) -> Layer:
        """The layer with the picture.

        Raises:
          EditError: if the file is no picture.
        """
        return geometry.replaced(layer, picture_at(self.picture), self.fit, canvas)

    def problems(self, stack: Stack) -> list[EditError]:
        """As of all operations; the picture is read."""
        picture = problem_of(picture_at, self.picture)
        return [*super().problems(stack), *([picture] if picture else [])]
