"""Settings of the loader: the composition of batches, and the distribution of the work."""

import dataclasses

from qil_jax.errors import QilError
from qil_jax.loader.buckets import BucketConfig
from qil_jax.loader.plan import Order
from qil_jax.loader.tasks import TaskConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes that share each batch.

    Attributes:
      index: index of this process, `jax.process_index()`.
      count: number of processes, `jax.process_count()`.
    """

    index: int = 0
    count: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """Composition of the batches.

    Attributes:
      rows: number of rows of a batch over all processes, at least 1. A row is one sequence of the transformer.
      seed: random seed of the order of records, the tasks, the crops and all other random choices.
      order: order of the records in an epoch; crops are random if it is shuffled, else central.
      epochs: number of epochs after which the loader ends, at least 1; None means endless.
      max_layers: maximum number of layers of a sample, at least 1; those of records with more are merged.
      tasks: mix of training tasks.
      buckets: sizes of images and capacity of rows.

    Raises:
      QilError: if a number is below 1.
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
                raise QilError(f"LoaderConfig: {name} is {value} and must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """Distribution of a process's work over workers and threads, which does not influence the batches.

    Attributes:
      processes: number of worker processes; with 0 the loader's own process does the work.
      threads: number of threads of each process, at least 1; each thread makes a whole batch.
      ahead: number of batches that each process prefetches and holds in memory.
    """

    processes: int = 0
    threads: int = 2
    ahead: int = 2
