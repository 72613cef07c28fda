"""Export of a finished stage to RUN/checkpoint, which inference, evaluation and the next stage read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qil_jax.files import AnyPath
from qil_jax.loader.loader import Loader
from qil_jax.training.disk import at
from qil_jax.training.setup import TrainingRun
from qil_jax.training.step import TrainState
from qil_jax.weights import Component, component_config
from qil_jax.weights.export import MARKER, export_checkpoint

CHECKPOINT = "checkpoint"
EXAMPLES = 64
"""Number of batches for statistics of the exported model, such as those of a trained RGBA-VAE's latents."""


def export_run(run: TrainingRun, state: TrainState, destination: AnyPath, *, dtype: str = "float32") -> None:
    """Export the EMA of the parameters as a complete checkpoint. All processes must call this function.

    Raises:
      ExportError: if the folder exists.
      OSError: if the disk is full.
    """
    stage, start = run.experiment.stage, run.experiment.start
    params = {**run.frozen, **state.ema_params}
    config = component_config(Path(start.folder(stage.component)), stage.component)
    config |= run.stage.export_config(params, _examples(run))
    with at(destination):
        export_checkpoint(
            destination,
            component=stage.component,
            params=params,
            config=config,
            others={part: Path(start.folder(part)) for part in Component},
            origin={"stage": stage.value, "step": int(state.step)},
            dtype=dtype,
        )


def exported(destination: AnyPath) -> bool:
    """Whether a folder holds a complete exported checkpoint."""
    return (destination / MARKER).exists()


def _examples(run: TrainingRun) -> Iterator[Any]:
    """The first training batches, as inputs of the step."""
    with Loader(run.source, run.experiment.data.loader, processes=run.placement.processes) as loader:
        for batch, _ in zip(loader, range(min(EXAMPLES, loader.plan.steps_per_epoch)), strict=False):
            yield run.stage.inputs(batch)
