"""What a finished stage leaves behind: RUN/checkpoint, a folder that inference, evaluation and the next stage read."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qil_jax.loader.loader import Loader
from qil_jax.models.rgba_vae import RGBAVAE
from qil_jax.training.batches import PictureBatch
from qil_jax.training.disk import at
from qil_jax.training.parameters import Params
from qil_jax.training.setup import Parts
from qil_jax.training.stages import Stage
from qil_jax.training.step import TrainState
from qil_jax.weights import Component, component_config
from qil_jax.weights.export import export_checkpoint

CHECKPOINT = "checkpoint"
STATISTICS_BATCHES = 64
"""Batches over which the latents of a trained RGBA-VAE are measured."""


def export_run(parts: Parts, state: TrainState, destination: Path, *, dtype: str = "float32") -> None:
    """Write the averaged parameters with all else that a checkpoint has. Every process must call.

    Raises:
      ExportError: if the folder exists.
      OSError: if the disk is full.
    """
    stage, start = parts.experiment.stage, parts.experiment.start
    component = stage.component
    params = {**parts.frozen, **state.ema_params}
    config: dict[str, Any] = component_config(Path(start.folder(component)), component)
    if stage is Stage.RGBA_VAE:
        mean, std = latent_statistics(parts, params)
        config |= {"input_channels": 4, "latents_mean": mean, "latents_std": std}
    with at(destination):
        export_checkpoint(
            destination,
            component=component,
            params=params,
            config=config,
            others={part: Path(start.folder(part)) for part in Component},
            origin={"stage": stage.value, "step": int(state.step)},
            dtype=dtype,
        )


def latent_statistics(parts: Parts, params: Params) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel of the latents, over batches that training begins with."""
    assert parts.experiment.stage is Stage.RGBA_VAE
    measure = jax.jit(lambda params, batch: _moments(parts.network(params), batch))
    loader = Loader(parts.source, parts.experiment.data.loader, processes=parts.placement.processes)
    with loader:
        found = [
            jax.device_get(measure(params, parts.inputs(batch)))
            for batch, _ in zip(loader, range(min(STATISTICS_BATCHES, loader.plan.steps_per_epoch)), strict=False)
        ]
    sums = [np.asarray(sum(np.asarray(f[i], np.float64) for f in found)) for i in range(3)]
    mean = sums[1] / sums[0]
    std = np.sqrt(np.maximum(sums[2] / sums[0] - mean**2, 1e-12))
    return mean.round(4).tolist(), std.round(4).tolist()


def _moments(vae: RGBAVAE, batch: PictureBatch) -> tuple[Array, Array, Array]:
    """How many latents there are, and sums of values and squares of each channel."""
    latents = vae.encode(batch.pixels.astype(jnp.float32) / 127.5 - 1).mode()
    shown = (batch.weights > 0)[:, None, None, None]
    count = jnp.sum(batch.weights > 0) * latents.shape[1] * latents.shape[2]
    sums = [jnp.sum(x, axis=(0, 1, 2), where=shown) for x in (latents, jnp.square(latents))]
    return count, sums[0], sums[1]
