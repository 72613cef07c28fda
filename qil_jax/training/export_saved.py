"""Export of a checkpoint of a run, finished or not, on one host and without the run's mesh."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from qil_jax.errors import QilError
from qil_jax.mesh import TRAINING_RULES, Sharding, single_device_mesh
from qil_jax.records.sources import SPLIT
from qil_jax.training.batches import RowPlacement
from qil_jax.training.data import open_data
from qil_jax.training.disk import at
from qil_jax.training.experiment import Experiment, ExperimentError
from qil_jax.training.finish import example_batches, exported_config, origin_of_export, trained_lora
from qil_jax.training.initial import Initial, initial_checkpoints, trained_component
from qil_jax.training.inputs import picture_batch
from qil_jax.training.parameters import params_of, training_network
from qil_jax.training.run_folder import EXPERIMENT, experiment_of
from qil_jax.training.saved import SavedParams
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.stages.vae import latent_statistics
from qil_jax.training.state_tree import Weights
from qil_jax.weights import Checkpoint, Component
from qil_jax.weights.export import export_checkpoint, require_free
from qil_jax.weights.load import MergedParams
from qil_jax.weights.lora import write_lora


def export_saved(
    run: Path,
    destination: Path,
    *,
    step: int | None = None,
    weights: Weights = Weights.EMA,
    dtype: str = "float32",
    on_bytes: Callable[[int, int], None] = lambda written, total: None,
) -> int:
    """Export a checkpoint of a run as a complete checkpoint folder of the released layout, and return its step.

    Low-rank changes are added to the parameters that the run started from, or written alone as a LoRA file.

    Nothing of the run is changed, and it may go on meanwhile. Host memory holds one trained parameter at a time, except
    for the VAE; all that is read is verified by its checksum.

    Args:
      run: folder of the run; relative paths in its experiment are relative to the working directory.
      destination: folder to write, or a LoRA file if the name ends in .safetensors; it appears whole.
      step: step of the checkpoint; None: the newest.
      weights: which of the trained parameters are exported.
      dtype: dtype in which the trained tensors are stored.
      on_bytes: callback with the size of a tensor that was written, and that of all tensors of the component.

    Raises:
      ExperimentError: if the folder holds no run, or the run's initial checkpoint or its data are missing.
      StructureError: if the initial checkpoint is not sound.
      CheckpointError: if there is no such checkpoint, or it is damaged.
      ExportError: if the destination exists.
      OSError: if the disk is full.
    """
    experiment = experiment_of(run)
    as_lora = destination.suffix == ".safetensors"
    if as_lora and experiment.lora is None:
        raise ExperimentError(f"{run} trains no LoRA, so {destination} cannot be a file of one: give a folder")
    require_free(destination)
    params = SavedParams(run, step, weights)
    initial = initial_checkpoints(experiment)
    _require_initial(initial, run)
    config = exported_config(experiment, initial)
    if experiment.stage is Stage.RGBA_VAE:
        config |= _measured(experiment, initial[Component.VAE], params, run)
    origin = origin_of_export(experiment, initial, params.step, weights)
    lora = None if experiment.lora is None else trained_lora(experiment, initial, params, origin)
    with at(destination):
        if lora is not None and as_lora:
            write_lora(destination, lora, dtype)
            return params.step
        export_checkpoint(
            destination,
            component=experiment.stage.component,
            params=params if lora is None else MergedParams(trained_component(experiment, initial), [(lora, 1.0)]),
            config=config,
            others=initial,
            origin=origin,
            dtype=dtype,
            on_bytes=on_bytes,
        )
    return params.step


def _require_initial(initial: Initial, run: Path) -> None:
    for checkpoint in dict.fromkeys(initial.values()):
        if not checkpoint.folder.is_dir():
            raise ExperimentError(f"{checkpoint.folder}: {run} started from it, and it is not there; {_relative(run)}")
        checkpoint.require_sound()


def _measured(experiment: Experiment, checkpoint: Checkpoint, params: SavedParams, run: Path) -> dict[str, Any]:
    """The entries of the VAE's config that are measured on the run's first batches.

    Raises:
      ExperimentError: if the run's data cannot be read.
    """
    try:
        source = open_data(experiment, SPLIT, experiment.data.loader)
    except QilError as error:
        raise ExperimentError(
            f"{error}\nlatents_mean and latents_std are measured on the run's data, so make it available; "
            f"{_relative(run)}"
        ) from error
    sharding = Sharding(single_device_mesh(), TRAINING_RULES)
    vae = checkpoint.load(Component.VAE, sharding, dtype=jnp.float32, layered=True)
    values = params_of(vae) | {path: jnp.asarray(value) for path, value in params.items()}
    placement = RowPlacement(sharding, experiment.data.loader.rows)
    batches = (picture_batch(batch, placement) for batch in example_batches(experiment, source, placement))
    return latent_statistics(training_network(vae), values, batches)


def _relative(run: Path) -> str:
    return f"relative paths in {run / EXPERIMENT} begin where it was trained, so run this there, not in {Path.cwd()}"
