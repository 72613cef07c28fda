"""What batches are made of, and how the work on them is shared out."""

import dataclasses

from qil_jax.errors import QilError
from qil_jax.loader.buckets import BucketConfig
from qil_jax.loader.plan import Order
from qil_jax.loader.tasks import TaskConfig


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
    """How a process shares out the work. It has no influence on the batches.

    Attributes:
      processes: that decode; 0: none but this one.
      threads: of each process, each at a batch of its own.
      ahead: batches that each process keeps ready: memory is this many batches more.
    """

    processes: int = 0
    threads: int = 2
    ahead: int = 2
