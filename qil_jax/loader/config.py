"""Settings of the loader: what batches consist of, and how the work is distributed."""

import dataclasses

from qil_jax.errors import QilError
from qil_jax.loader.buckets import BucketConfig
from qil_jax.loader.plan import Order
from qil_jax.loader.tasks import TaskConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes that share each batch.

    Attributes:
      index: of this process, `jax.process_index()`.
      count: of processes, `jax.process_count()`.
    """

    index: int = 0
    count: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What batches consist of.

    Attributes:
      rows: of a batch, all processes together, at least 1. A row is one sequence of the transformer.
      seed: of the order of records, the tasks, the crops and whatever else is random.
      order: of the records in an epoch; crops are random if it is shuffled, else central.
      epochs: number after which the loader ends, at least 1; None: endless.
      max_layers: of a sample, at least 1; records with more are merged down to it.
      tasks: mix of tasks.
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
    """How a process distributes the work. It has no influence on the batches.

    Attributes:
      processes: number of worker processes; 0: the loader's own process does the work.
      threads: of each process, at least 1; each makes a batch of its own.
      ahead: number of batches that each process prepares in advance and holds in memory.
    """

    processes: int = 0
    threads: int = 2
    ahead: int = 2
