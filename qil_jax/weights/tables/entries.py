"""Every tensor of a released checkpoint: its name and shape, where it goes in our tree, and how
(docs/specification.md, 7).

A table is derived from a component's config and read in both directions; nothing is written twice.
"""

import dataclasses
import math
from enum import StrEnum

import numpy as np
from jaxtyping import Shaped


class Component(StrEnum):
    """The folders of a checkpoint that hold weights."""

    TRANSFORMER = "transformer"
    VAE = "vae"
    TEXT_ENCODER = "text_encoder"

    @property
    def stem(self) -> str:
        """Name of its weight files without the ending, as transformers and diffusers call them."""
        return "model" if self is Component.TEXT_ENCODER else "diffusion_pytorch_model"


class Transform(StrEnum):
    """How a stored tensor becomes a parameter."""

    COPY = "copy"
    LINEAR = "linear"  # [out, in] -> [in, out]
    POINTWISE = "pointwise"  # [out, in, 1, ...] -> [in, out]
    CONV = "conv"  # [out, in, 3, 3] -> [3, 3, in, out]
    TAP = "tap"  # [out, in, 3, 3, 3] -> the last temporal tap, [3, 3, in, out]
    FLAT = "flat"  # [C, 1, ...] -> [C]
    PATCH = "patch"  # [out, c, t, y, x] -> [c t y x, out]
    SIDECAR = "sidecar"  # kept whole beside the parameters; no picture ever reads it

    def forward(self, x: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """The parameter of a stored tensor, as a view."""
        match self:
            case Transform.COPY | Transform.SIDECAR:
                return x
            case Transform.LINEAR:
                return x.T
            case Transform.POINTWISE:
                return x.reshape(x.shape[:2]).T
            case Transform.CONV:
                return x.transpose(2, 3, 1, 0)
            case Transform.TAP:
                return x[:, :, -1].transpose(2, 3, 1, 0)
            case Transform.FLAT:
                return x.reshape(-1)
            case Transform.PATCH:
                return x.reshape(x.shape[0], -1).T

    def backward(self, x: Shaped[np.ndarray, "..."], shape: tuple[int, ...]) -> Shaped[np.ndarray, "..."]:
        """The stored tensor of a parameter, of `shape`, as a view; TAP gives the last temporal tap, [out, in, 3, 3]."""
        match self:
            case Transform.CONV | Transform.TAP:
                return x.transpose(3, 2, 0, 1)
            case Transform.LINEAR | Transform.POINTWISE | Transform.PATCH:
                return x.T.reshape(shape)
            case Transform.COPY | Transform.SIDECAR | Transform.FLAT:
                return x.reshape(shape)

    @property
    def leading(self) -> int:
        """Which axis of the parameter is the first of the stored tensor."""
        return 0 if self in (Transform.COPY, Transform.FLAT, Transform.SIDECAR) else -1

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the parameter made of a stored tensor."""
        out, *rest = stored
        match self:
            case Transform.COPY | Transform.SIDECAR:
                return stored
            case Transform.FLAT:
                return (math.prod(stored),)
            case Transform.LINEAR | Transform.POINTWISE | Transform.PATCH:
                return (math.prod(rest), out)
            case Transform.CONV | Transform.TAP:
                return (*rest[-2:], rest[0], out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored tensor.

    Attributes:
      name: its released name.
      shape: its released shape.
      path: slash-joined path of its parameter in our tree; of a SIDECAR, the released name.
      transform: from tensor to parameter.
      block: index on the leading axis of a stacked parameter; None: the parameter is not stacked.
    """

    name: str
    shape: tuple[int, ...]
    path: str
    transform: Transform
    block: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One parameter of our tree.

    Attributes:
      path: slash-joined.
      shape: with the axis of blocks where it is stacked.
      entries: the stored tensors it is made of: one, or one per block.
    """

    path: str
    shape: tuple[int, ...]
    entries: tuple[Entry, ...]


def targets(table: list[Entry]) -> dict[str, Target]:
    """The parameters that a table makes, by path."""
    groups: dict[str, list[Entry]] = {}
    for entry in table:
        if entry.transform is not Transform.SIDECAR:
            groups.setdefault(entry.path, []).append(entry)
    result = {}
    for path, entries in groups.items():
        shape = entries[0].transform.shape(entries[0].shape)
        if entries[0].block is not None:
            entries.sort(key=lambda e: e.block or 0)
            shape = (len(entries), *shape)
        result[path] = Target(path=path, shape=shape, entries=tuple(entries))
    return result


def linear(name: str, path: str, sizes: tuple[int, int], block: int | None = None, *, bias: bool = True) -> list[Entry]:
    """Weight and bias of a linear map; `sizes` are (out, in)."""
    entries = [
        Entry(name=f"{name}.weight", shape=sizes, path=f"{path}/kernel", transform=Transform.LINEAR, block=block)
    ]
    return entries + ([plain(f"{name}.bias", f"{path}/bias", sizes[:1], block)] if bias else [])


def plain(name: str, path: str, shape: tuple[int, ...], block: int | None = None) -> Entry:
    """A tensor that is stored as we use it."""
    return Entry(name=name, shape=shape, path=path, transform=Transform.COPY, block=block)
