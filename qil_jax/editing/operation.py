"""What all operations of editing have in common, and the types of their fields, which pydantic checks in scripts."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import UInt8
from pydantic import BeforeValidator, ConfigDict, Field

from qil_jax.editing.stack import EditError, Layer, Stack
from qil_jax.layers.enlarging import open_picture
from qil_jax.layers.pictures import LARGEST_SIDE, ImageError


def _address(value: Any) -> int | str:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise EditError(f"must be the number of a layer, from 1, or its name, got {value!r}")


def _op_first(schema: dict[str, Any]) -> None:
    schema["required"] = ["op", *schema.get("required", ())]


CONFIG = ConfigDict(
    extra="forbid",
    strict=True,
    allow_inf_nan=False,
    revalidate_instances="always",
    use_attribute_docstrings=True,
    json_schema_extra=_op_first,
)
Address = Annotated[Annotated[int, Field(ge=1)] | str, BeforeValidator(_address)]
"""A layer's number or its name."""
OneLayer = Annotated[Address, Field(description="The layer's number, or its name.")]
"""The field `layer`: an inherited field has no docstring of its own for pydantic."""
Distance = Annotated[int, Field(ge=-LARGEST_SIDE, le=LARGEST_SIDE)]
Length = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Margin = Annotated[int, Field(ge=0, le=LARGEST_SIDE)]
Place = Annotated[int, Field(ge=1)]
Angle = Annotated[float, Field(ge=-360, le=360)]
Share = Annotated[float, Field(ge=0, le=1)]
Colour = Annotated[str, Field(pattern="^#[0-9a-fA-F]{6}$")]
Name = Annotated[str, Field(min_length=1, max_length=255)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation(ABC):
    """A change of a stack."""

    __pydantic_config__ = CONFIG
    op: str

    @abstractmethod
    def apply(self, stack: Stack) -> Stack:
        """The stack after the operation.

        Raises:
          EditError: if it cannot be carried out.
        """

    def outlined(self, stack: Stack) -> Stack:
        """The stack with the layers, names and canvas that it will have after the operation, but perhaps other pixels.

        Raises:
          EditError: if the operation cannot be carried out.
        """
        return self.apply(stack)

    def problems(self, stack: Stack) -> list[EditError]:
        """The reasons why the operation cannot be carried out; computes no pixels."""
        addresses = {name: getattr(self, name, None) for name in ("layer", "above", "below")}
        found = [problem_of(stack.index, address, name) for name, address in addresses.items() if address is not None]
        return list(filter(None, found)) or list(filter(None, [problem_of(self.outlined, stack)]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerOperation(Operation):
    """A change of one layer's pixels or place."""

    layer: OneLayer

    @abstractmethod
    def edited(self, layer: Layer, canvas: tuple[int, int]) -> Layer:
        """The layer after the operation, on a canvas of this width and height."""

    def apply(self, stack: Stack) -> Stack:
        """The stack after the operation.

        Raises:
          EditError: if it cannot be carried out.
        """
        index = stack.index(self.layer)
        return stack.with_layer(index, self.edited(stack.layers[index], stack.size))

    def outlined(self, stack: Stack) -> Stack:
        """The stack, which keeps its layers and their names."""
        return stack


def picture_at(path: str) -> UInt8[np.ndarray, "y x 4"]:
    """The picture of an operation's field `picture`, straight RGBA in sRGB.

    Raises:
      EditError: if the file is no picture.
    """
    try:
        return np.asarray(open_picture(Path(path)).in_srgb())
    except ImageError as error:
        raise EditError(str(error), "picture") from error


def problem_of(work: Callable[..., Any], *arguments: Any) -> EditError | None:
    """The error that `work(*arguments)` raises; None if it raises none."""
    try:
        work(*arguments)
    except EditError as error:
        return error
    return None
