"""Export of a finished stage to RUN/checkpoint, which inference, evaluation and the next stage read, or to RUN/lora."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from qil_jax.files import AnyPath, whole_folder
from qil_jax.loader.loader import Loader
from qil_jax.training.disk import at
from qil_jax.training.experiment import Experiment
from qil_jax.training.lora import lora_of
from qil_jax.training.setup import TrainingRun
from qil_jax.training.start import LORA, LORA_FILE, ORIGIN
from qil_jax.training.step import TrainState
from qil_jax.weights import Component, component_config
from qil_jax.weights.export import MARKER, export_checkpoint, gathered
from qil_jax.weights.lora import write_lora
from qil_jax.weights.tables import table_of

CHECKPOINT = "checkpoint"
EXAMPLES = 64
"""Number of batches for statistics of the exported model, such as those of a trained RGBA-VAE's latents."""


def result_of(experiment: Experiment, run: Path) -> Path:
    """The path of a finished run's result: the folder of its checkpoint, or its LoRA file."""
    return run / CHECKPOINT if experiment.lora is None else run / LORA / LORA_FILE


def export_run(run: TrainingRun, state: TrainState, destination: Path, *, dtype: str = "float32") -> None:
    """Export the EMA of the trained parameters: as a complete checkpoint, or low-rank changes as a LoRA file.

    All processes must call this function.

    Args:
      run: prepared run.
      state: state after the last step.
      destination: path of the result, see `result_of`.
      dtype: dtype in which the trained tensors are stored.

    Raises:
      ExportError: if the checkpoint exists.
      OSError: if the folder of the LoRA file exists, or the disk is full.
    """
    stage, start = run.experiment.stage, run.experiment.start
    origin = {"stage": stage.value, "step": int(state.step)}
    config = component_config(Path(start.folder(stage.component)), stage.component)
    if run.experiment.lora is not None:
        with at(destination):
            lora = lora_of(
                {path: gathered(values) for path, values in state.ema_params.items()},
                run.experiment.lora,
                table_of(stage.component, config),
                origin,
            )
            if jax.process_index() == 0:
                with whole_folder(destination.parent) as folder:
                    write_lora(folder / destination.name, lora, dtype)
                    (folder / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n")
        return
    params = {**run.frozen, **state.ema_params}
    config |= run.stage.export_config(params, _examples(run))
    with at(destination):
        export_checkpoint(
            destination,
            component=stage.component,
            params=params,
            config=config,
            others={part: Path(start.folder(part)) for part in Component},
            origin=origin,
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
