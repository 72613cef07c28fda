"""What a run asks of its stage."""

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from qil_jax.loader.batch import Batch
from qil_jax.training.objectives import Objective
from qil_jax.training.parameters import Params

StepBatch = TypeVar("StepBatch")
"""What the compiled step reads: FlowBatch or PictureBatch, arrays over the mesh."""


@runtime_checkable
class StageProgram(Protocol[StepBatch]):
    """A stage of training, without its parameters; those are given as one dictionary, trained and frozen together."""

    @property
    def objective(self) -> Objective:
        """The loss of a batch, as a function of the trained and the frozen parameters."""
        ...

    def inputs(self, batch: Batch) -> StepBatch:
        """This process's rows as the step reads them. All processes must call."""
        ...

    def flops(self, inputs: StepBatch) -> float:
        """FLOPs of a training step on a batch of this shape, forward and backward, without recomputation by remat."""
        ...

    def tokens(self, batch: Batch) -> int:
        """Latent tokens of the batch's pictures, without padding; of this process's rows."""
        ...

    def sheet(self, params: Params, batch: Batch, inputs: StepBatch, count: int) -> list[list[np.ndarray]]:
        """Lines of RGBA pictures for `count` rows of a batch: each line of targets is followed by the model's own."""
        ...

    def export_config(self, params: Params, examples: Iterator[StepBatch]) -> dict[str, Any]:
        """Entries of the trained component's config.json that training changes.

        Args:
          params: the parameters that are exported.
          examples: the first batches of training, read only where statistics are needed.
        """
        ...
