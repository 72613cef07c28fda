"""Batches of one process: its rows of a training step, as arrays of fixed shapes."""

import dataclasses
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from qil_jax.loader.config import LoaderConfig, Processes
from qil_jax.loader.plan import NO_RECORD, GlobalBatch, Plan, Shape
from qil_jax.loader.samples import Sample, SampleSource
from qil_jax.loader.tasks import Task

TASKS = tuple(Task)
"""The tasks in the order in which a batch numbers them."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """The rows of a training step that one process holds.

    A row holds samples one after the other, each [composite, layer 1, ..., layer L, condition], then padding. All
    samples of a row have one task, because the transformer has one noise level and target kind per row.

    Attributes:
      pictures: straight RGBA images, or latents from a source of cached latents; padding is 0.
      layer_indices: index of each image on the layer axis of Layer3D RoPE; 0 for padding.
      segments: number, from 1, of the row's sample to which an image belongs; 0 is padding, which is never attended to.
      targets: mask of the images that count in the loss; conditions and padding do not.
      tasks: task of each row, as index in TASKS.
      target_kinds: entry of the transformer's addition embedding for each row.
      records: number of each sample's record, or NO_RECORD.
      captions: the prompt of each sample, empty where there is none.
      step: number of the step, counted from 0 over all epochs.
      states: hidden states of each sample's prompt and of the empty prompt; None unless latents are cached.
      lengths: number of valid states of either prompt; None unless latents are cached.
    """

    pictures: UInt8[np.ndarray, "b p y x 4"] | Float[np.ndarray, "b p h w z"]
    layer_indices: Int[np.ndarray, "b p"]
    segments: Int[np.ndarray, "b p"]
    targets: Bool[np.ndarray, "b p"]
    tasks: Int[np.ndarray, " b"]
    target_kinds: Int[np.ndarray, " b"]
    records: Int[np.ndarray, "b s"]
    captions: tuple[tuple[str, ...], ...]
    step: int
    states: Float[np.ndarray, "b s 2 n e"] | None = None
    lengths: Int[np.ndarray, "b s 2"] | None = None


class BatchMaker:
    """Makes the arrays of one process's rows of a step: the function that threads and worker processes run."""

    def __init__(
        self,
        source: SampleSource,
        config: LoaderConfig,
        plan: Plan,
        limits: Int[np.ndarray, " n"],
        processes: Processes,
    ):
        """`limits` is the maximum number of layers of each record."""
        self.source, self.config, self.plan, self.limits, self.processes = source, config, plan, limits, processes

    def __call__(self, step: int) -> dict[str, Any]:
        """Return the fields of a Batch by name."""
        whole = self.plan.batch(step)
        mine = len(whole.records) // self.processes.count
        first = self.processes.index * mine
        batch = {**_empty(whole.shape, mine), **self.source.empty(whole.shape, mine)}
        captions = []
        for row in range(mine):
            task = self.config.tasks.choose(self._rng(_Draw.TASK, step, first + row))
            batch["tasks"][row] = TASKS.index(task)
            batch["target_kinds"][row] = task.target_kind
            samples = [self._sample(index, whole, task) for index in whole.records[first + row].tolist()]
            batch["records"][row] = whole.records[first + row]
            _fill_row(samples, {name: array[row] for name, array in batch.items()})
            captions.append(tuple("" if sample is None else sample.caption for sample in samples))
        return {**batch, "captions": tuple(captions), "step": step}

    def _sample(self, index: int, whole: GlobalBatch, task: Task) -> Sample | None:
        """The sample of a record at the batch's size; None where there is no record."""
        if index == NO_RECORD:
            return None
        rng = self._rng(_Draw.SAMPLE, whole.epoch, index)
        size = whole.shape.width, whole.shape.height
        return self.source.sample(index, task, size=size, limit=int(self.limits[index]), rng=rng)

    def _rng(self, draw: "_Draw", *position: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, draw, *position])


class _Draw(IntEnum):
    """Random quantities of a batch, each drawn from its own stream of random numbers."""

    TASK = 1
    SAMPLE = 2


def _empty(shape: Shape, rows: int) -> dict[str, np.ndarray]:
    """Rows of padding, without the images."""
    places = rows, shape.pictures
    return {
        "layer_indices": np.zeros(places, np.int32),
        "segments": np.zeros(places, np.int32),
        "targets": np.zeros(places, bool),
        "tasks": np.zeros(rows, np.int32),
        "target_kinds": np.zeros(rows, np.int32),
        "records": np.full((rows, shape.samples), NO_RECORD, np.int64),
    }


def _fill_row(samples: Sequence[Sample | None], row: dict[str, np.ndarray]) -> None:
    """Write the samples of a row one after the other, in place."""
    at = 0
    for place, sample in enumerate(samples):
        if sample is None:
            continue
        end = at + len(sample.pictures)
        row["pictures"][at:end] = sample.pictures
        row["layer_indices"][at:end] = sample.layer_indices
        row["segments"][at:end] = place + 1
        row["targets"][at : at + sample.targets] = True
        if sample.states is not None:
            row["states"][place], row["lengths"][place] = sample.states, sample.lengths
        at = end
