"""Entries of tensor tables: name and shape of a released tensor, and its parameter and transformation.

A table is derived from a component's config and serves conversion in both directions (docs/specification.md, 7).
"""

import dataclasses
import math
from enum import StrEnum
from typing import Any

import numpy as np
from jaxtyping import Shaped


class Component(StrEnum):
    """The folders of a checkpoint that hold weights."""

    TRANSFORMER = "transformer"
    VAE = "vae"
    TEXT_ENCODER = "text_encoder"

    @property
    def stem(self) -> str:
        """The name of the component's weight files in transformers and diffusers, without the suffix."""
        return "model" if self is Component.TEXT_ENCODER else "diffusion_pytorch_model"


class Transform(StrEnum):
    """The transformation from a stored tensor to a parameter."""

    COPY = "copy"
    LINEAR = "linear"  # [out, in] -> [in, out]
    POINTWISE = "pointwise"  # [out, in, 1, ...] -> [in, out]
    CONV = "conv"  # [out, in, 3, 3] -> [3, 3, in, out]
    TAP = "tap"  # [out, in, 3, 3, 3] -> the last temporal tap, [3, 3, in, out]
    FLAT = "flat"  # [C, 1, ...] -> [C]
    PATCH = "patch"  # [out, c, t, y, x] -> [c t y x, out]
    SIDECAR = "sidecar"  # stored unchanged beside the parameters; not used for single pictures

    def forward(self, x: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """The parameter as a view of a stored tensor."""
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
        """The stored tensor, of shape `shape`, as a view of a parameter; for TAP its last tap [out, in, 3, 3]."""
        match self:
            case Transform.CONV | Transform.TAP:
                return x.transpose(3, 2, 0, 1)
            case Transform.LINEAR | Transform.POINTWISE | Transform.PATCH:
                return x.T.reshape(shape)
            case Transform.COPY | Transform.SIDECAR | Transform.FLAT:
                return x.reshape(shape)

    @property
    def leading(self) -> int:
        """The axis of the parameter that is the first axis of the stored tensor."""
        return 0 if self in (Transform.COPY, Transform.FLAT, Transform.SIDECAR) else -1

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the parameter that results from a stored tensor's shape."""
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
      name: released name of the tensor.
      shape: released shape of the tensor.
      path: slash-joined path of the parameter; for a SIDECAR, the released name.
      transform: transformation from the tensor to the parameter.
      block: index on the leading axis of a stacked parameter; None: the parameter is not stacked.
      dtype: dtype that the tensor must have and keeps when it is loaded; None: any float, cast as the caller says.
    """

    name: str
    shape: tuple[int, ...]
    path: str
    transform: Transform
    block: int | None = None
    dtype: np.dtype | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One parameter and its stored tensors.

    Attributes:
      path: slash-joined path of the parameter.
      shape: shape of the parameter, including the axis of blocks if it is stacked.
      entries: table entries of its stored tensors: one, or one per block.
    """

    path: str
    shape: tuple[int, ...]
    entries: tuple[Entry, ...]

    def loaded_dtype(self, stored: np.dtype, wanted: Any) -> np.dtype:
        """The dtype of the loaded parameter if it is stored as `stored` and floats are `wanted`; None: as stored."""
        return stored if wanted is None or self.entries[0].dtype is not None else np.dtype(wanted)


def targets(table: list[Entry]) -> dict[str, Target]:
    """The parameters of a table by path."""
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
    """Entries of the weight and the bias of a linear map; `sizes` is (out, in)."""
    entries = [
        Entry(name=f"{name}.weight", shape=sizes, path=f"{path}/kernel", transform=Transform.LINEAR, block=block)
    ]
    return entries + ([plain(f"{name}.bias", f"{path}/bias", sizes[:1], block)] if bias else [])


def plain(name: str, path: str, shape: tuple[int, ...], block: int | None = None) -> Entry:
    """The entry of a tensor whose stored form equals the parameter."""
    return Entry(name=name, shape=shape, path=path, transform=Transform.COPY, block=block)
