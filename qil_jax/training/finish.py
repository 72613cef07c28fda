"""Export of a finished stage to RUN/checkpoint, which inference, evaluation and the next stage read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qil_jax.loader.batch import Batch
from qil_jax.loader.loader import Loader
from qil_jax.loader.samples import SampleSource
from qil_jax.training.batches import RowPlacement
from qil_jax.training.disk import at
from qil_jax.training.experiment import Experiment
from qil_jax.training.setup import TrainingRun
from qil_jax.training.start import new_in_network
from qil_jax.training.state_tree import Weights
from qil_jax.training.step import TrainState
from qil_jax.weights import Component, component_config
from qil_jax.weights.export import export_checkpoint
from qil_jax.weights.extension import layered_config

CHECKPOINT = "checkpoint"
EXAMPLES = 64
"""Number of batches for statistics of the exported model, such as those of a trained RGBA-VAE's latents."""


def export_run(run: TrainingRun, state: TrainState, destination: Path, *, dtype: str = "float32") -> None:
    """Export the EMA of the parameters as a complete checkpoint. All processes must call this function.

    Raises:
      ExportError: if the folder exists.
      OSError: if the disk is full.
    """
    experiment, params = run.experiment, {**run.frozen, **state.ema_params}
    batches = example_batches(experiment, run.source, run.placement)
    config = exported_config(experiment)
    config |= run.stage.export_config(params, (run.stage.inputs(batch) for batch in batches))
    with at(destination):
        export_checkpoint(
            destination,
            component=experiment.stage.component,
            params=params,
            config=config,
            others=start_folders(experiment),
            origin=origin_of_export(experiment, int(state.step), Weights.EMA),
            dtype=dtype,
        )


def start_folders(experiment: Experiment) -> dict[Component, Path]:
    """The folder of the initial checkpoint from which each component is read or copied."""
    return {part: Path(experiment.start.folder(part)) for part in Component}


def exported_config(experiment: Experiment) -> dict[str, Any]:
    """The config of the trained component, as that of a layered model, without what training measures."""
    component = experiment.stage.component
    return layered_config(component, component_config(start_folders(experiment)[component], component))


def origin_of_export(experiment: Experiment, step: int, weights: Weights) -> dict[str, Any]:
    """The content of training.json: stage, step, whether it is the EMA, and what the initial checkpoint lacks."""
    origin = {"stage": experiment.stage.value, "step": step, "ema": weights is Weights.EMA}
    new = new_in_network(experiment)
    return {**origin, "new": new} if new else origin


def example_batches(experiment: Experiment, source: SampleSource, placement: RowPlacement) -> Iterator[Batch]:
    """The first training batches."""
    with Loader(source, experiment.data.loader, processes=placement.processes) as loader:
        for batch, _ in zip(loader, range(min(EXAMPLES, loader.plan.steps_per_epoch)), strict=False):
            yield batch
