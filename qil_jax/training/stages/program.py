"""The interface between a run and its stage."""

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from qil_jax.loader.batch import Batch
from qil_jax.training.objectives import Objective
from qil_jax.training.parameters import Params

StepBatch = TypeVar("StepBatch")
"""The input of the compiled step: a FlowBatch or a PictureBatch of arrays on the mesh."""


@runtime_checkable
class StageProgram(Protocol[StepBatch]):
    """A stage of training without its parameters; methods receive trained and frozen parameters as one dictionary."""

    @property
    def objective(self) -> Objective:
        """The loss of a batch, as a function of the trained and the frozen parameters."""
        ...

    def inputs(self, batch: Batch) -> StepBatch:
        """Convert this process's rows to the step's input. All processes must call this function."""
        ...

    def flops(self, inputs: StepBatch) -> float:
        """FLOPs of a training step on a batch of this shape, forward and backward, without rematerialisation."""
        ...

    def tokens(self, batch: Batch) -> int:
        """The number of latent tokens of the pictures in this process's rows, without padding."""
        ...

    def sheet(self, params: Params, batch: Batch, inputs: StepBatch, count: int) -> list[list[np.ndarray]]:
        """Lines of RGBA pictures for `count` rows of a batch: a line of targets, then one of the model's outputs."""
        ...

    def export_config(self, params: Params, examples: Iterator[StepBatch]) -> dict[str, Any]:
        """Entries of the trained component's config.json that training changes.

        Args:
          params: exported parameters.
          examples: iterator over the first training batches, for stages that need statistics.
        """
        ...
