"""The loader, which makes batches of fixed shapes from records with grain.

    plan: which records -> read, decode -> crop, resize -> merge layers, if a row has no room -> task -> rows of a batch

A batch is a function of (records, config, seed, step) alone: it does not depend on the number of processes, workers or
threads, nor on when the loader was started. Colour under alpha 0 is 0 in every image.
"""

import signal
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from qil_jax.errors import QilError, counted
from qil_jax.identity import fingerprint
from qil_jax.loader.batch import Batch, BatchMaker
from qil_jax.loader.buckets import Bucket, assign
from qil_jax.loader.config import LoaderConfig, Processes, Workers
from qil_jax.loader.plan import Plan, Shape
from qil_jax.loader.samples import RecordSamples, SampleSource
from qil_jax.records.sources import RecordMetadata, RecordSource


class Loader:
    """Iterator over the batches of one process, endless or for a number of epochs. `state` and `restore` are exact.

    With worker processes it must be closed, or used in a `with` statement, and the program needs the usual guard
    `if __name__ == "__main__":`, because each worker imports it.
    """

    def __init__(
        self,
        source: SampleSource,
        config: LoaderConfig,
        *,
        processes: Processes = Processes(),
        workers: Workers = Workers(),
    ):
        """Plan all batches; nothing is decoded yet. For plain records see `of_records`.

        Raises:
          QilError: if rows cannot be shared among the processes, there are fewer records than a batch needs, a record
            has no layers, a row has no room for the smallest sample, or the source cannot provide what is asked for.
        """
        if config.rows % processes.count or not 0 <= processes.index < processes.count:
            raise QilError(
                f"{config.rows} rows cannot be shared by process {processes.index} of {processes.count}: "
                f"rows must be a multiple of the number of processes"
            )
        if len(source) < config.rows:
            raise QilError(f"{counted(len(source), 'record')} for a batch of {config.rows} rows: lower `rows`")
        self.config, self.workers = config, workers
        metadata = source.metadata()
        if not metadata.layers.all():
            raise QilError(f"{source.name(int(np.argmin(metadata.layers)))} has no layers: take it out")
        buckets, pictures, limits = fitted(metadata, config)
        source.require(config, buckets, limits)
        self.plan = Plan(buckets, pictures, rows=config.rows, seed=config.seed, order=config.order)
        self.fingerprint = fingerprint(config, metadata.rows.tobytes())
        self._make = BatchMaker(source, config, self.plan, limits, processes)
        self._step = 0
        self._batches: grain.DatasetIterator[dict[str, Any]] | None = None

    @classmethod
    def of_records(
        cls,
        records: RecordSource,
        config: LoaderConfig,
        *,
        processes: Processes = Processes(),
        workers: Workers = Workers(),
    ) -> "Loader":
        """A loader of records that are decoded, cropped and resized as they are needed. Raises as the constructor."""
        return cls(RecordSamples(records, config), config, processes=processes, workers=workers)

    @property
    def shapes(self) -> list[Shape]:
        """All static shapes of the batches."""
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
        """The loader's position as JSON, for a checkpoint. It is the same for all processes of a run."""
        return {"step": self._step, "fingerprint": self.fingerprint}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where a loader of the same records and config was, whatever its processes and workers.

        Raises:
          QilError: if the state belongs to other records or another config.
        """
        if state.get("fingerprint") != self.fingerprint:
            raise QilError(
                f"the loader's state is of other records or settings ({state.get('fingerprint')}, here "
                f"{self.fingerprint}): restore it with those it was saved with, or start a new run"
            )
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Stop threads and worker processes. Prefetched batches are discarded; the position is kept."""
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
            batches = batches.mp_prefetch(options, worker_init_fn=_ignore_interrupts)
        return batches


def fitted(
    metadata: RecordMetadata, config: LoaderConfig
) -> tuple[list[Bucket], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Bucket, maximum number of images of a sample, and maximum number of layers of each record.

    Raises:
      QilError: if a row has no room for the smallest sample.
    """
    layers = np.minimum(metadata.layers, config.max_layers)
    most = np.array([config.tasks.pictures(count) for count in range(int(layers.max()) + 1)])
    buckets = assign(metadata.sizes, most[layers], config.buckets, least=int(most[1]))
    pictures = np.minimum(most[layers], [bucket.room for bucket in buckets])
    return buckets, pictures, np.searchsorted(most, pictures, side="right") - 1


class _Steps:
    """Data source of grain whose elements are the numbers of the steps."""

    def __init__(self, start: int, end: int):
        self.start, self.end = start, end

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, index: Any) -> int:
        return self.start + int(index)


def _ignore_interrupts(index: int, count: int) -> None:
    """Ignore Ctrl-C in a worker process, because it reaches all processes of a terminal and the main one handles it."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
