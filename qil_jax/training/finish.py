"""Export of a finished stage to RUN/checkpoint, which inference, evaluation and the next stage read, or to RUN/lora."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from qil_jax.files import AnyPath, result_folder
from qil_jax.loader.batch import Batch
from qil_jax.loader.loader import Loader
from qil_jax.loader.samples import SampleSource
from qil_jax.training.batches import RowPlacement
from qil_jax.training.disk import at
from qil_jax.training.experiment import Experiment
from qil_jax.training.initial import Initial, initial_checkpoints, new_in_network, trained_component
from qil_jax.training.lora import lora_of
from qil_jax.training.setup import TrainingRun
from qil_jax.training.start import LORA, LORA_FILE
from qil_jax.training.state_tree import Weights
from qil_jax.training.step import TrainState
from qil_jax.weights.export import ORIGIN, export_checkpoint, gathered, require_free
from qil_jax.weights.lora import LoRA, write_lora

CHECKPOINT = "checkpoint"
EXAMPLES = 64
"""Number of batches for statistics of the exported model, such as those of a trained RGBA-VAE's latents."""


def result_of(experiment: Experiment, run: AnyPath) -> AnyPath:
    """The folder of a finished run's result: of its checkpoint, or of its LoRA file."""
    return run / (CHECKPOINT if experiment.lora is None else LORA)


def exported(destination: AnyPath) -> bool:
    """Whether a folder holds a complete result of a run."""
    return (destination / ORIGIN).exists()


def export_run(run: TrainingRun, state: TrainState, destination: AnyPath, *, dtype: str = "float32") -> None:
    """Export the EMA of the trained parameters: as a complete checkpoint, or low-rank changes as a LoRA file.

    All processes must call this function.

    Args:
      run: prepared run.
      state: state after the last step.
      destination: folder of the result, see `result_of`.
      dtype: dtype in which the trained tensors are stored.

    Raises:
      ExportError: if the folder exists.
      OSError: if the disk is full.
    """
    experiment = run.experiment
    initial = initial_checkpoints(experiment)  # anew: the run may have taken weeks
    origin = origin_of_export(experiment, initial, int(state.step), Weights.EMA)
    if experiment.lora is not None:
        lora = trained_lora(experiment, initial, state.ema_params, origin)
        if jax.process_index() == 0:
            require_free(destination)
            with at(destination), result_folder(destination, last=ORIGIN) as folder:
                write_lora(folder / LORA_FILE, lora, dtype)
                (folder / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n")
        return
    params = {**run.frozen, **state.ema_params}
    batches = example_batches(experiment, run.source, run.placement)
    config = exported_config(experiment, initial)
    config |= run.stage.export_config(params, (run.stage.inputs(batch) for batch in batches))
    with at(destination):
        export_checkpoint(
            destination,
            component=experiment.stage.component,
            params=params,
            config=config,
            others=initial,
            origin=origin,
            dtype=dtype,
        )


def trained_lora(
    experiment: Experiment, initial: Initial, factors: Mapping[str, Any], origin: Mapping[str, Any]
) -> LoRA:
    """The low-rank changes of factors by path, which may be on the mesh; all processes must call this function."""
    assert experiment.lora is not None
    table = trained_component(experiment, initial).architecture.layered.table
    whole = {path: gathered(values) for path, values in factors.items()}
    return lora_of(whole, experiment.lora, table, origin)


def exported_config(experiment: Experiment, initial: Initial) -> dict[str, Any]:
    """The config of the trained component, as that of a layered model, without what training measures."""
    return dict(trained_component(experiment, initial).architecture.layered.json)


def origin_of_export(experiment: Experiment, initial: Initial, step: int, weights: Weights) -> dict[str, Any]:
    """The content of training.json: stage, step, whether it is the EMA, and what the initial checkpoint lacks."""
    origin = {"stage": experiment.stage.value, "step": step, "ema": weights is Weights.EMA}
    new = new_in_network(experiment, initial)
    return {**origin, "new": new} if new else origin


def example_batches(experiment: Experiment, source: SampleSource, placement: RowPlacement) -> Iterator[Batch]:
    """The first training batches."""
    with Loader(source, experiment.data.loader, processes=placement.processes) as loader:
        for batch, _ in zip(loader, range(min(EXAMPLES, loader.plan.steps_per_epoch)), strict=False):
            yield batch
