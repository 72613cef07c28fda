"""Division of parameters into pieces of a few MB, and of released tensors into corresponding rows."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Shaped

from qil_jax.weights.safetensors_io import TensorReader
from qil_jax.weights.source import Layout, ParameterSource, row_major
from qil_jax.weights.stored import StoredComponent
from qil_jax.weights.tables.entries import Entry, Target, Transform

PIECE_BYTES = 8 << 20
"""Maximum size of a chunk in bytes. Small pieces let the allocator reuse memory instead of mapping new pages."""

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Consecutive rows of a tensor, in its released shape and order.

    Attributes:
      entry: table entry of the tensor.
      first: index of the first row.
      values: elements of the rows.
    """

    entry: Entry
    first: int
    values: Shaped[np.ndarray, "..."]


def chunk_of(target: Target, dtype: np.dtype) -> tuple[int, ...]:
    """The shape of a piece: one block, split along the stored tensor's rows into chunks of at most PIECE_BYTES."""
    chunk = list(target.shape) if target.entries[0].block is None else [1, *target.shape[1:]]
    rows = _rows_axis(target)
    parts = -(-math.prod(chunk) * dtype.itemsize // PIECE_BYTES)
    chunk[rows] = -(-chunk[rows] // parts)
    return tuple(chunk)


def _rows_axis(target: Target) -> int:
    """The index, counting the axis of blocks, of the parameter's axis that is the first of its stored tensors."""
    first = target.entries[0]
    return first.transform.leading % len(first.transform.shape(first.shape)) + (first.block is not None)


def pieces_of(target: Target, dtype: np.dtype) -> Iterator[Index]:
    """The pieces of a parameter, ordered by block and then by row of the stored tensor."""
    chunk = chunk_of(target, dtype)
    counts = [-(-size // step) for size, step in zip(target.shape, chunk, strict=True)]
    for position in np.ndindex(*counts):
        yield tuple(
            slice(int(p) * c, min((int(p) + 1) * c, s)) for p, c, s in zip(position, chunk, target.shape, strict=True)
        )


def released_rows(reader: ParameterSource, target: Target, index: Index, sidecar: TensorReader) -> Rows:
    """A piece of a parameter as rows of the released tensor; `sidecar` provides the VAE's other temporal taps."""
    part = reader.read(target, index)
    rows = index[_rows_axis(target)]
    entry = target.entries[0]
    if entry.block is not None:
        entry, part = target.entries[index[0].start], part[0]
    stored = entry.transform.backward(part, (rows.stop - rows.start, *entry.shape[1:]))
    if entry.transform is Transform.TAP:
        stored = np.concatenate([sidecar[entry.name][rows], stored[:, :, None]], axis=2)
    return Rows(entry=entry, first=rows.start, values=row_major(stored))


def released_pieces(stored: StoredComponent) -> Iterator[Rows]:
    """All tensors of a sound component of either layout, each once and with its rows in order.

    Host memory is bounded by a few pieces of 8 MiB.
    """
    reader = stored.reader()
    if stored.layout is Layout.DIFFUSERS:
        yield from tensor_rows(reader, stored.names, stored.table)
        return
    source = stored.source()
    for target in stored.targets.values():
        for index in pieces_of(target, source.dtype(target)):
            yield released_rows(source, target, index, reader)
    yield from tensor_rows(reader, stored.names, [e for e in stored.table if e.transform is Transform.SIDECAR])


def tensor_rows(reader: TensorReader, names: Mapping[str, str], entries: list[Entry]) -> Iterator[Rows]:
    """The rows of some entries' tensors in pieces of at most 8 MiB; `names` maps released names to stored ones."""
    for entry in entries:
        tensor = reader[names[entry.name]]
        step = max(1, PIECE_BYTES * len(tensor) // max(tensor.nbytes, 1))
        for first in range(0, len(tensor), step):
            yield Rows(entry=entry, first=first, values=tensor[first : first + step])
        reader.release()
