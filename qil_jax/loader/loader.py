"""The loader: records to batches of fixed shapes, by grain.

    plan: which records -> read, decode -> crop, resize -> fewer layers, if a row has no room -> task -> rows of a batch

A batch is a function of (records, config, seed, step) alone: not of the number of processes, workers or threads, nor of
when the loader was started. Colour under alpha 0 is 0 in every picture.
"""

import dataclasses
import hashlib
import signal
from enum import IntEnum
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from qil_jax.errors import QilError
from qil_jax.layers.grouping import cheapest_merges, merge
from qil_jax.layers.resize import choose_crop, resized
from qil_jax.layers.visibility import visible_pixels
from qil_jax.loader.batch import NO_RECORD, TASKS, Batch, _empty, _put
from qil_jax.loader.buckets import Bucket, assign
from qil_jax.loader.config import LoaderConfig, Processes, Workers
from qil_jax.loader.latents import LatentSource
from qil_jax.loader.plan import GlobalBatch, Order, Plan, Shape
from qil_jax.loader.samples import Sample, make_sample
from qil_jax.loader.tasks import Subject, Task, TaskConfig
from qil_jax.records.record import Record
from qil_jax.records.sources import Facts, RecordSource


class RecordError(QilError):
    """A record cannot be read. The message says which and why."""


class Loader:
    """Batches of one process, for ever or for so many epochs. `state` and `restore` are exact.

    With worker processes it must be closed, or used in a `with` statement, and the program needs the usual guard
    `if __name__ == "__main__":`, because each worker imports it.
    """

    def __init__(
        self,
        source: RecordSource | LatentSource,
        config: LoaderConfig,
        *,
        processes: Processes = Processes(),
        workers: Workers = Workers(),
    ):
        """Plan all batches; nothing is decoded yet.

        Raises:
          QilError: if rows cannot be shared among the processes, there are fewer records than a batch needs, a record
            has no layers, or a row has no room for the smallest sample.
        """
        if config.rows % processes.count or not 0 <= processes.index < processes.count:
            raise QilError(
                f"{config.rows} rows cannot be shared by process {processes.index} of {processes.count}: "
                f"rows must be a multiple of the number of processes"
            )
        if len(source) < config.rows:
            raise QilError(f"{len(source)} records are fewer than the {config.rows} rows of a batch: lower `rows`")
        self.config, self.workers = config, workers
        facts = source.facts()
        if not facts.layers.all():
            raise QilError(f"{source.name(int(np.argmin(facts.layers)))} has no layers: take it out")
        buckets, pictures, limits = fitted(facts, config)
        self.plan = Plan(buckets, pictures, rows=config.rows, seed=config.seed, order=config.order)
        self.fingerprint = hashlib.sha256(repr(config).encode() + facts.rows.tobytes()).hexdigest()[:16]
        if isinstance(source, LatentSource):
            _require_cached_tasks(source, config.tasks)
            _require_as_cached(source, facts, buckets, limits)
        self._make = _MakeBatch(source, config, self.plan, limits, processes)
        self._step = 0
        self._batches: grain.DatasetIterator[dict[str, Any]] | None = None

    @property
    def shapes(self) -> list[Shape]:
        """All shapes that batches will have."""
        return self.plan.shapes

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = iter(self._dataset(self._step))
        batch = next(self._batches)
        self._step += 1
        return Batch(**batch)

    def state(self) -> dict[str, Any]:
        """Where the loader is, for a checkpoint, as JSON. It is the same for all processes of a run."""
        return {"step": self._step, "fingerprint": self.fingerprint}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where a loader of the same records and config was, whatever its processes and workers.

        Raises:
          QilError: if the state is of other records or another config: its batches could not be continued.
        """
        if state.get("fingerprint") != self.fingerprint:
            raise QilError(
                f"the loader's state is of other records or settings ({state.get('fingerprint')}, here "
                f"{self.fingerprint}): restore it with those it was saved with, or start a new run"
            )
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Stop threads and worker processes. What they had ready is forgotten, but no position is lost."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _dataset(self, start: int) -> grain.IterDataset:
        epochs = self.config.epochs
        end = 2**62 if epochs is None else epochs * self.plan.steps_per_epoch
        reading = grain.ReadOptions(num_threads=self.workers.threads, prefetch_buffer_size=self.workers.ahead)
        steps = grain.MapDataset.source(_Steps(start, max(start, end))).map(self._make)
        batches = steps.to_iter_dataset(reading)
        if self.workers.processes:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads absl's flags, which programs without absl never parse
            options = grain.MultiprocessingOptions(self.workers.processes, self.workers.ahead)
            batches = batches.mp_prefetch(options, worker_init_fn=_leave_interrupts)
        return batches


def _leave_interrupts(index: int, count: int) -> None:
    """Ctrl-C reaches every process of a terminal: what it means is the main one's to decide."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def fitted(facts: Facts, config: LoaderConfig) -> tuple[list[Bucket], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The bucket of each record, how many pictures it takes there at most, and how many layers it may have.

    Raises:
      QilError: if a row has no room for the smallest sample.
    """
    layers = np.minimum(facts.layers, config.max_layers)
    most = np.array([config.tasks.pictures(count) for count in range(config.max_layers + 1)])
    buckets = assign(facts.sizes, most[layers], config.buckets, least=int(most[1]))
    pictures = np.minimum(most[layers], [bucket.room for bucket in buckets])
    return buckets, pictures, np.searchsorted(most, pictures, side="right") - 1


def resized_record(
    record: Record, target: tuple[int, int], limit: int, rng: np.random.Generator | None = None
) -> Record:
    """A record cropped and resized to a bucket, its layers merged down to `limit`. Without `rng`, by the middle."""
    crop = choose_crop(record.size, target, rng)
    layers = resized(record.layers, record.size, crop=crop, target=target)
    if len(layers) > limit:
        layers = merge(layers, cheapest_merges(visible_pixels(layers, target), limit), target)
    return dataclasses.replace(record, layers=tuple(layers), size=target)


class _Steps:
    """The numbers of the steps, as grain's source."""

    def __init__(self, start: int, end: int):
        self.start, self.end = start, end

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, index: Any) -> int:
        return self.start + int(index)


class _MakeBatch:
    """The arrays of one process's rows of a step: the function that threads and worker processes run."""

    def __init__(
        self,
        source: RecordSource | LatentSource,
        config: LoaderConfig,
        plan: Plan,
        limits: Int[np.ndarray, " n"],
        processes: Processes,
    ):
        """`limits`: layers that each record may have."""
        self.source, self.config, self.plan, self.limits, self.processes = source, config, plan, limits, processes

    def __call__(self, step: int) -> dict[str, Any]:
        """The fields of a Batch."""
        whole = self.plan.batch(step)
        mine = len(whole.records) // self.processes.count
        first = self.processes.index * mine
        batch = _empty(whole.shape, mine, self.source)
        captions = []
        for row in range(mine):
            task = self.config.tasks.choose(self._rng(_Draw.TASK, step, first + row))
            batch["tasks"][row] = TASKS.index(task)
            batch["target_kinds"][row] = task.target_kind
            samples = [self._sample(index, whole, task) for index in whole.records[first + row].tolist()]
            batch["records"][row] = whole.records[first + row]
            _put(samples, {name: array[row] for name, array in batch.items()})
            captions.append(tuple("" if sample is None else sample.caption for sample in samples))
        return {**batch, "captions": tuple(captions), "step": step}

    def _sample(self, index: int, whole: GlobalBatch, task: Task) -> Sample | None:
        """A record as the task and the batch's size want it; None for no record."""
        if index == NO_RECORD:
            return None
        if isinstance(self.source, LatentSource):
            return self.source.sample(index, task)
        rng = self._rng(_Draw.SAMPLE, whole.epoch, index)
        target = whole.shape.width, whole.shape.height
        crop_rng = rng if self.config.order is Order.SHUFFLED else None
        record = resized_record(self._record(index), target, int(self.limits[index]), crop_rng)
        return make_sample(task, record, self.config.tasks, rng)

    def _record(self, index: int) -> Record:
        assert not isinstance(self.source, LatentSource)
        try:
            return self.source[index]
        except Exception as error:  # whatever a reader may raise, the user must learn of which record
            raise RecordError(f"{self.source.name(index)} cannot be read: {error}") from error

    def _rng(self, draw: "_Draw", *position: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, draw, *position])


class _Draw(IntEnum):
    """What is drawn: each has random numbers of its own."""

    TASK = 1
    SAMPLE = 2


def _require_as_cached(
    source: LatentSource, facts: Facts, buckets: list[Bucket], limits: Int[np.ndarray, " n"]
) -> None:
    """Latents cannot be resized or merged: the buckets and limits must be those they were made for."""
    sizes = np.array([(bucket.width, bucket.height) for bucket in buckets])
    wrong = (sizes != facts.sizes).any(axis=1) | (limits < facts.layers)
    if wrong.any():
        index = int(np.argmax(wrong))
        width, height = facts.sizes[index]
        raise QilError(
            f"{source.name(index)} holds {facts.layers[index]} layers of {width} x {height} pixels, but the loader "
            f"wants at most {limits[index]} of {sizes[index][0]} x {sizes[index][1]}: give the loader the buckets, "
            f"max_layers and row_tokens that the latents were cached with"
        )


def _require_cached_tasks(source: LatentSource, tasks: TaskConfig) -> None:
    """Latents are there of the composite, the layers, the foreground, and the composite over white."""
    mix = [task for task, _ in tasks.mix]
    if Task.RECONSTRUCTION in mix or (Task.TEXT_TO_RGBA in mix and tasks.subject is Subject.LAYER):
        raise QilError(
            f"{source.folder}: cached latents serve neither the task {Task.RECONSTRUCTION} nor the subject "
            f"{Subject.LAYER}: train from pictures, data.inputs=pictures"
        )
