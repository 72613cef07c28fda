"""Assignment of records to batches, a pure function of the records' sizes, the seed and the step.

All batches are planned before a pixel is read. So a loader's whole state is one number, the same for all processes; any
number of processes can share a batch, and every record occurs exactly once in an epoch.

A row of a batch holds one or several samples, as many as its bucket has room for. The layout of the rows is computed
once, from the number of images of each sample; every epoch assigns records to it anew, so all epochs have equally many
steps.
"""

import dataclasses
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from jaxtyping import Int

from qil_jax.loader.buckets import Bucket

NO_RECORD = -1
"""Number of the record at a place of a batch that has none."""


class Order(StrEnum):
    """The order of the records in an epoch."""

    SHUFFLED = "shuffled"  # a new random order in every epoch
    SEQUENTIAL = "sequential"  # the order of the source, for evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The static shape of a batch's rows.

    Attributes:
      width: width of every image in pixels.
      height: height of every image in pixels.
      pictures: number of images of a row, padding included.
      samples: maximum number of samples of a row.
    """

    width: int
    height: int
    pictures: int
    samples: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GlobalBatch:
    """The records of one training step over all processes.

    Attributes:
      shape: static shape of the rows.
      records: number of the record at each place of each row, or NO_RECORD.
      epoch: number of the epoch to which the step belongs, from 0.
    """

    shape: Shape
    records: Int[np.ndarray, "b s"]
    epoch: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Layout:
    """The rows of one bucket: for each row and place the number of images of the sample there; 0 is no sample."""

    shape: Shape
    rooms: Int[np.ndarray, "r s"]


class Plan:
    """The batches of every epoch."""

    def __init__(
        self, buckets: Sequence[Bucket], pictures: Int[np.ndarray, " n"], *, rows: int, seed: int, order: Order
    ):
        """Lay out the rows.

        Args:
          buckets: bucket of each record.
          pictures: number of images of each record's sample, no more than its bucket has room for.
          rows: number of rows of a batch over all processes.
          seed: random seed of the shuffling.
          order: order of the records in an epoch.
        """
        self.rows, self.seed, self.order = rows, seed, order
        number = {bucket: i for i, bucket in enumerate(dict.fromkeys(buckets))}
        self._bucket = np.array([number[bucket] for bucket in buckets], np.int64)
        self._pictures = pictures
        self._filled: dict[int, list[tuple[Shape, np.ndarray]]] = {}
        self._layouts = [_lay_out(b, pictures[self._bucket == i]) for b, i in number.items()]

    @property
    def shapes(self) -> list[Shape]:
        """All shapes that batches have; a training step is compiled once for each."""
        return [layout.shape for layout in self._layouts]

    @property
    def records(self) -> int:
        """Number of records of an epoch."""
        return len(self._pictures)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch; the last of each bucket may have empty rows."""
        return sum(-(-len(layout.rooms) // self.rows) for layout in self._layouts)

    def batch(self, step: int) -> GlobalBatch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, at = divmod(step, self.steps_per_epoch)
        shape, records = self._epoch(epoch)[at]
        return GlobalBatch(shape=shape, records=records, epoch=epoch)

    def _epoch(self, epoch: int) -> list[tuple[Shape, np.ndarray]]:
        """The batches of an epoch. The last two epochs are cached, because threads that prefetch need both."""
        found = self._filled.get(epoch)
        if found is None:
            found = self._fill(epoch)
            self._filled = {e: batches for e, batches in self._filled.items() if e == epoch - 1} | {epoch: found}
        return found

    def _fill(self, epoch: int) -> list[tuple[Shape, np.ndarray]]:
        rng = np.random.default_rng([self.seed, epoch])
        batches = []
        for i, layout in enumerate(self._layouts):
            records = np.full_like(layout.rooms, NO_RECORD)
            mine = np.flatnonzero(self._bucket == i)
            for room in np.unique(self._pictures[mine]):
                members = mine[self._pictures[mine] == room]
                records[layout.rooms == room] = self._ordered(members, rng)
            records = records[self._ordered(np.arange(len(records)), rng)]
            empty = np.full((-len(records) % self.rows, records.shape[1]), NO_RECORD)
            full = np.concatenate([records, empty]).reshape(-1, self.rows, records.shape[1])
            batches += [(layout.shape, part) for part in full]
        return [batches[j] for j in self._ordered(np.arange(len(batches)), rng)]

    def _ordered(self, numbers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(numbers) if self.order is Order.SHUFFLED else numbers


def _lay_out(bucket: Bucket, pictures: Int[np.ndarray, " n"]) -> _Layout:
    """Pack samples of these numbers of images into rows greedily: the largest first, then the next that fits."""
    left = dict(zip(*(x.tolist() for x in np.unique(pictures, return_counts=True)), strict=True))
    patterns: list[tuple[list[int], int]] = []
    while left:
        pattern, free = {}, bucket.room
        for size in sorted(left, reverse=True):
            pattern[size] = min(left[size], free // size)
            free -= pattern[size] * size
        pattern = {size: count for size, count in pattern.items() if count}
        repeats = min(left[size] // count for size, count in pattern.items())
        left = {size: n - repeats * pattern.get(size, 0) for size, n in left.items()}
        left = {size: n for size, n in left.items() if n}
        patterns.append(([size for size, count in pattern.items() for _ in range(count)], repeats))
    samples = max(len(row) for row, _ in patterns)
    rows = [row + [0] * (samples - len(row)) for row, repeats in patterns for _ in range(repeats)]
    rooms = np.array(rows, np.int64)
    used = int(rooms.sum(axis=1).max())
    shape = Shape(width=bucket.width, height=bucket.height, pictures=used, samples=samples)
    return _Layout(shape=shape, rooms=rooms)
