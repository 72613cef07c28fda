"""Parameters put together on a mesh from pieces that several threads read, in bounded host memory.

A process reads each piece of its own shards once, however many of its devices hold it. A shard that is larger than a
piece is allocated on its devices and filled there, row by row of its first axis, which are blocks where blocks are
stacked.
"""

import dataclasses
import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Shaped

from qil_jax.host_memory import return_freed

Index = tuple[slice, ...]
"""The position of a slice of an array, with one slice per dimension."""
OnBytes = Callable[[int, int], None]
"""A callback with (bytes read, bytes to read) of this process."""
READERS = 4
"""Number of threads that read."""
PIECE_BYTES = 64 << 20
"""Bytes that are read at once for all devices of this process, unless a single row is larger."""
AHEAD_BYTES = 128 << 20
"""Bytes that are read in advance of what the devices have taken."""
_REPORT: ContextVar[OnBytes] = ContextVar("report", default=lambda done, total: None)
Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placed:
    """A parameter that is to be read onto a mesh.

    Attributes:
      shape: shape of the whole parameter.
      dtype: dtype on the devices.
      itemsize: bytes of a stored element.
      sharding: placement on the mesh.
      read: function that reads the slice at an index, in `dtype`; called from several threads.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    itemsize: int
    sharding: NamedSharding
    read: Callable[[Index], Shaped[np.ndarray, "..."]]

    def shards(self) -> dict[tuple[tuple[int, int], ...], list[jax.Device]]:
        """The devices of this process that hold each of its shards, by the shard's bounds in every dimension."""
        found: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
        for device, index in self.sharding.addressable_devices_indices_map(self.shape).items():
            bounds = zip(index or (), self.shape, strict=True)
            found.setdefault(tuple(s.indices(size)[:2] for s, size in bounds), []).append(device)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Piece:
    """The rows of all shards that are read at once; `rows` None: whole shards."""

    path: str
    rows: slice | None
    stored_bytes: int
    host_bytes: int


@contextmanager
def reporting(on_bytes: OnBytes) -> Iterator[None]:
    """Let everything that the block loads call back with the bytes of the component that this process has read."""
    token = _REPORT.set(on_bytes)
    try:
        yield
    finally:
        _REPORT.reset(token)


def assemble(wanted: Mapping[str, Placed]) -> dict[str, Shaped[Array, "..."]]:
    """Read parameters by path onto their devices.

    All processes of the mesh must call this function with equal arguments.
    """
    pieces = [piece for path, placed in wanted.items() for piece in _pieces(path, placed)]
    done, freed, total = 0, 0, sum(piece.stored_bytes for piece in pieces)
    found: dict[str, Array] = {}

    def read(piece: _Piece) -> list[np.ndarray]:
        placed = wanted[piece.path]
        return [placed.read(_index(bounds, piece.rows)) for bounds in placed.shards()]

    for piece, values in _in_advance(pieces, read, lambda piece: piece.host_bytes):
        placed = wanted[piece.path]
        if piece.rows is None:
            found[piece.path] = _on_devices(placed, values)
        else:
            if piece.path not in found:
                found[piece.path] = _empty(placed.sharding, placed.shape, placed.dtype)()
            update = _fill(placed.sharding)
            found[piece.path] = update(found[piece.path], _on_devices(placed, values), np.int32(piece.rows.start))
            found[piece.path].block_until_ready()  # so that the piece is free
        done += piece.stored_bytes
        _REPORT.get()(done, total)
        freed += piece.host_bytes
        if freed >= AHEAD_BYTES:
            return_freed()
            freed = 0
    return_freed()
    return found


def _pieces(path: str, placed: Placed) -> Iterator[_Piece]:
    shards = list(placed.shards())
    elements = sum(math.prod(stop - start for start, stop in shard) for shard in shards)
    size = elements * max(placed.itemsize, placed.dtype.itemsize)
    rows = shards[0][0][1] - shards[0][0][0] if placed.shape else 1
    if size <= PIECE_BYTES or rows == 1:
        yield _Piece(path=path, rows=None, stored_bytes=elements * placed.itemsize, host_bytes=size)
        return
    step = max(1, rows * PIECE_BYTES // size)
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        share = (part.stop - part.start) * elements // rows
        stored, host = share * placed.itemsize, share * size // elements
        yield _Piece(path=path, rows=part, stored_bytes=stored, host_bytes=host)


def _index(bounds: tuple[tuple[int, int], ...], rows: slice | None) -> Index:
    """The index of a shard, or of some of its rows."""
    index = tuple(slice(*bound) for bound in bounds)
    if rows is None:
        return index
    start = index[0].start
    return (slice(start + rows.start, start + rows.stop), *index[1:])


def _on_devices(placed: Placed, values: list[np.ndarray]) -> Array:
    """The array whose shards are `values`, in the order of `placed.shards()`."""
    arrays = [
        jax.device_put(value, device)
        for value, devices in zip(values, placed.shards().values(), strict=True)
        for device in devices
    ]
    local = values[0].shape
    ways = [size // part for size, part in zip(placed.shape, placed.sharding.shard_shape(placed.shape), strict=True)]
    shape = tuple(part * count for part, count in zip(local, ways, strict=True))
    return jax.make_array_from_single_device_arrays(shape, placed.sharding, arrays)


@functools.cache
def _empty(sharding: NamedSharding, shape: tuple[int, ...], dtype: np.dtype) -> Callable[[], Array]:
    return jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=sharding)


@functools.cache
def _fill(sharding: NamedSharding) -> Callable[[Array, Array, Any], Array]:
    """A function that writes rows into every shard at the same position, in place."""

    def update(whole: Array, rows: Array, first: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, rows, first, 0)

    mapped = jax.shard_map(
        update,
        mesh=sharding.mesh,
        in_specs=(sharding.spec, sharding.spec, PartitionSpec()),
        out_specs=sharding.spec,
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=0)


def _in_advance(
    items: Iterable[Item], work: Callable[[Item], Value], size: Callable[[Item], int]
) -> Iterator[tuple[Item, Value]]:
    """Items with their values in order, made by threads that stay less than AHEAD_BYTES ahead."""
    waiting: deque[tuple[Item, Future[Value]]] = deque()
    ahead = 0
    pool = ThreadPoolExecutor(READERS)
    try:
        for item in itertools.chain(items, [None]):
            while waiting and (item is None or ahead + size(item) > AHEAD_BYTES):
                first, future = waiting.popleft()
                ahead -= size(first)
                yield first, future.result()
            if item is not None:
                waiting.append((item, pool.submit(work, item)))
                ahead += size(item)
    finally:
        pool.shutdown(cancel_futures=True)
