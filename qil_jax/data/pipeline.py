"""The loader: records to batches of fixed shapes, by grain.

    plan: which records -> read, decode -> crop, resize -> fewer layers, if a row has no room -> task -> rows of a batch

A batch is a function of (records, config, seed, step) alone: not of the number of processes, workers or threads, nor of
when the loader was started. Colour under alpha 0 is 0 in every picture.
"""

import dataclasses
import hashlib
import signal
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Float, Int, UInt8

from qil_jax.data.buckets import Bucket, BucketConfig, assign
from qil_jax.data.cleaning import visible_pixels
from qil_jax.data.grouping import cheapest_merges, merge
from qil_jax.data.latents import LatentSource
from qil_jax.data.plan import GlobalBatch, Order, Plan, Shape
from qil_jax.data.records import Record
from qil_jax.data.resize import choose_crop, resized
from qil_jax.data.sources import Facts, RecordSource
from qil_jax.data.tasks import Sample, Subject, Task, TaskConfig, make_sample

NO_RECORD = -1
TASKS = tuple(Task)


class RecordError(ValueError):
    """A record cannot be read. The message says which and why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """Which of how many processes this is: `jax.process_index()` of `jax.process_count()`."""

    index: int = 0
    count: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What batches are made of.

    Attributes:
      rows: of a batch, all processes together. A row is one sequence of the transformer.
      max_layers: of a sample; records of more are merged down to it.
      epochs: after which the loader ends; None: never.

    Raises:
      ValueError: if a number is below 1.
    """

    rows: int
    seed: int = 0
    order: Order = Order.SHUFFLED
    epochs: int | None = None
    max_layers: int = 20
    tasks: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    buckets: BucketConfig = dataclasses.field(default_factory=BucketConfig)

    def __post_init__(self) -> None:
        for name, value in (
            ("rows", self.rows),
            ("max_layers", self.max_layers),
            ("epochs", 1 if self.epochs is None else self.epochs),
        ):
            if value < 1:
                raise ValueError(f"LoaderConfig: {name} is {value} and must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """How a process shares out the work. It has no influence on the batches.

    Attributes:
      processes: that decode; 0: none but this one.
      threads: of each process, each at a batch of its own.
      ahead: batches that each process keeps ready: memory is this many batches more.
    """

    processes: int = 0
    threads: int = 2
    ahead: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One process's rows of a step.

    A row holds samples one after the other, each [composite, layer 1, ..., layer L, condition], then padding. All
    samples of a row have one task, because the transformer has one noise level and target kind per row.

    Attributes:
      pictures: straight RGBA, or latents of a source of latents; padding is 0.
      layer_indices: of each picture, for Layer3D RoPE; 0 for padding.
      segments: which sample of the row a picture belongs to, counted from 1; 0 is padding, which nothing may see.
      targets: whether a picture counts in the loss. Conditions and padding do not.
      tasks: index in TASKS; target_kinds: the row of the transformer's addition embedding.
      records: number of each sample's record, or NO_RECORD.
      captions: the prompt of each sample, empty where there is none.
      step: counted from 0 over all epochs.
      states, lengths: of a source of latents, for each sample: states of its prompt and of no prompt, and how many.
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
          ValueError: if rows cannot be shared among the processes, there are fewer records than a batch needs, a record
            has no layers, or a row has no room for the smallest sample.
        """
        if config.rows % processes.count or not 0 <= processes.index < processes.count:
            raise ValueError(
                f"{config.rows} rows cannot be shared by process {processes.index} of {processes.count}: "
                f"rows must be a multiple of the number of processes"
            )
        if len(source) < config.rows:
            raise ValueError(f"{len(source)} records are fewer than the {config.rows} rows of a batch: lower `rows`")
        self.config, self.workers = config, workers
        facts = source.facts()
        if not facts.layers.all():
            raise ValueError(f"{source.name(int(np.argmin(facts.layers)))} has no layers: take it out")
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
          ValueError: if the state is of other records or another config: its batches could not be continued.
        """
        if state.get("fingerprint") != self.fingerprint:
            raise ValueError(
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
      ValueError: if a row has no room for the smallest sample.
    """
    layers = np.minimum(facts.layers, config.max_layers)
    most = np.array([config.tasks.pictures(count) for count in range(config.max_layers + 1)])
    buckets = assign(facts.sizes, most[layers], config.buckets, least=int(most[1]))
    pictures = np.minimum(most[layers], [bucket.room for bucket in buckets])
    return buckets, pictures, np.searchsorted(most, pictures, side="right") - 1


def resized_record(
    record: Record, target: tuple[int, int], limit: int, chance: np.random.Generator | None = None
) -> Record:
    """A record cropped and resized to a bucket, its layers merged down to `limit`. Without `chance`, by the middle."""
    crop = choose_crop(record.size, target, chance)
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
            task = self.config.tasks.choose(self._chance(_Draw.TASK, step, first + row))
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
        chance = self._chance(_Draw.SAMPLE, whole.epoch, index)
        target = whole.shape.width, whole.shape.height
        chance_of_crop = chance if self.config.order is Order.SHUFFLED else None
        record = resized_record(self._record(index), target, int(self.limits[index]), chance_of_crop)
        return make_sample(task, record, self.config.tasks, chance)

    def _record(self, index: int) -> Record:
        assert not isinstance(self.source, LatentSource)
        try:
            return self.source[index]
        except Exception as error:  # whatever a reader may raise, the user must learn of which record
            raise RecordError(f"{self.source.name(index)} cannot be read: {error}") from error

    def _chance(self, draw: "_Draw", *position: int) -> np.random.Generator:
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
        raise ValueError(
            f"{source.name(index)} holds {facts.layers[index]} layers of {width} x {height} pixels, but the loader "
            f"wants at most {limits[index]} of {sizes[index][0]} x {sizes[index][1]}: give the loader the buckets, "
            f"max_layers and row_tokens that the latents were cached with"
        )


def _require_cached_tasks(source: LatentSource, tasks: TaskConfig) -> None:
    """Latents are there of the composite, the layers, the foreground, and the composite over white."""
    mix = [task for task, _ in tasks.mix]
    if Task.RECONSTRUCTION in mix or (Task.TEXT_TO_RGBA in mix and tasks.subject is Subject.LAYER):
        raise ValueError(
            f"{source.folder}: cached latents serve neither the task {Task.RECONSTRUCTION} nor the subject "
            f"{Subject.LAYER}: train from pictures, data.inputs=pictures"
        )


def _empty(shape: Shape, rows: int, source: RecordSource | LatentSource) -> dict[str, np.ndarray]:
    places = rows, shape.pictures
    arrays = {
        "pictures": np.zeros((*places, shape.height, shape.width, 4), np.uint8),
        "layer_indices": np.zeros(places, np.int32),
        "segments": np.zeros(places, np.int32),
        "targets": np.zeros(places, bool),
        "tasks": np.zeros(rows, np.int32),
        "target_kinds": np.zeros(rows, np.int32),
        "records": np.full((rows, shape.samples), NO_RECORD, np.int64),
    }
    if isinstance(source, LatentSource):
        scale, channels = source.empty["scale"][0], source.empty["latents"]
        arrays["pictures"] = np.zeros((*places, shape.height // scale, shape.width // scale, *channels), np.float32)
        arrays["states"] = np.zeros((rows, shape.samples, 2, *source.empty["states"]), np.float32)
        arrays["lengths"] = np.zeros((rows, shape.samples, 2), np.int32)
    return arrays


def _put(samples: Sequence[Sample | None], row: dict[str, np.ndarray]) -> None:
    """Lay the samples of a row out one after the other, in place."""
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
