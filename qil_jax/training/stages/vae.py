"""The stage that trains the RGBA-VAE on pictures (arXiv 2512.15603, section 3.1; docs/specification.md, 1 and 8)."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qil_jax.encoders.pixels import to_float, to_uint8
from qil_jax.errors import say
from qil_jax.loader.batch import Batch
from qil_jax.models.lpips import lpips
from qil_jax.models.rgba_vae import RGBAVAE
from qil_jax.programs import called
from qil_jax.training.batches import PictureBatch, RowPlacement
from qil_jax.training.experiment import Experiment
from qil_jax.training.flops import vae_flops_per_pixel
from qil_jax.training.initial import Initial
from qil_jax.training.inputs import picture_batch
from qil_jax.training.objectives import Objective, vae_objective
from qil_jax.training.parameters import Network, Params, copied, params_of, training_network
from qil_jax.training.vae_loss import PerceptualLoss, VAELoss
from qil_jax.weights import Component
from qil_jax.weights.lpips import load_lpips

ACROSS = 8
"""Number of pictures per line of the validation sheet."""
ENCODER = re.compile(r"^(encoder|quant_conv)/")
"""The paths of the parameters on which latents depend."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VAEStage:
    """The `StageProgram` of the RGBA-VAE.

    Attributes:
      network: VAE without its parameters.
      objective: weighted sum of reconstruction, perceptual and regularising terms.
      placement: rows of a batch that this process reads, and their sharding.
      scale: number of pixels along the side of a latent.
      flops_per_pixel: FLOPs of a step per pixel.
      new_latents: whether the encoder is trained; if not, a transformer trained with its latents remains valid.
    """

    network: Network[RGBAVAE]
    objective: Objective
    placement: RowPlacement
    scale: int
    flops_per_pixel: float
    new_latents: bool

    def inputs(self, batch: Batch) -> PictureBatch:
        """A batch of all pictures of all rows."""
        return picture_batch(batch, self.placement)

    def flops(self, inputs: PictureBatch) -> float:
        """The FLOPs of a step on these pictures."""
        return self.flops_per_pixel * math.prod(inputs.pixels.shape[:3])

    def tokens(self, batch: Batch) -> int:
        """The number of latents of the batch's pictures."""
        height, width = batch.pictures.shape[2:4]
        return int((batch.segments > 0).sum()) * (height // self.scale) * (width // self.scale)

    def sheet(self, params: Params, batch: Batch, inputs: PictureBatch, count: int) -> list[list[np.ndarray]]:
        """Lines of pictures, each followed by a line of their reconstructions; four pictures per row of the batch."""
        del batch
        pixels = np.asarray(inputs.pixels)[: 4 * count]
        vae = self.network(params)
        made = to_uint8(vae.decode(vae.encode(to_float(jnp.asarray(pixels))).mode()))
        starts = range(0, len(pixels), ACROSS)
        return [list(pictures[i : i + ACROSS]) for i in starts for pictures in (pixels, made)]

    def export_config(self, params: Params, examples: Iterator[PictureBatch]) -> dict[str, Any]:
        """Config entries for mean and standard deviation of each latent channel; none if latents stay as they are."""
        if not self.new_latents:
            return {}
        return latent_statistics(self.network, params, examples)


def vae_stage(
    experiment: Experiment, initial: Initial, placement: RowPlacement, source: Any
) -> tuple[VAEStage, Params]:
    """The stage and its initial parameters; an RGB VAE is extended to RGBA."""
    del source
    vae = initial[Component.VAE].load(Component.VAE, placement.sharding, dtype=jnp.float32, layered=True)
    loss = experiment.vae_loss
    network, params = training_network(vae), params_of(vae)
    objective = vae_objective(
        network,
        loss,
        dtype=jnp.dtype(experiment.precision),
        reference=copied(params) if loss.reference_kl else None,
        perceptual_loss=load_perceptual_loss(loss),
    )
    stage = VAEStage(
        network=network,
        objective=objective,
        placement=placement,
        scale=vae.config.scale_factor,
        flops_per_pixel=vae_flops_per_pixel(vae),
        new_latents=trains_encoder(params, experiment.trainable),
    )
    return stage, params


def trains_encoder(paths: Iterable[str], trainable: str) -> bool:
    """Whether a run trains parameters on which latents depend, among the paths of a VAE's parameters."""
    return any(ENCODER.search(path) and re.search(trainable, path) for path in paths)


def load_perceptual_loss(loss: VAELoss) -> PerceptualLoss | None:
    """LPIPS if its weight is not zero and its file exists, else None; a line is printed if the file is absent."""
    if not loss.perceptual:
        return None
    missing = missing_perceptual(loss)
    if missing is not None:
        say(missing)
        return None
    weights, network = load_lpips(Path(str(loss.perceptual_weights)))
    return functools.partial(lpips, weights, network)


def missing_perceptual(loss: VAELoss) -> str | None:
    """A line that says why a perceptual term that is asked for is off; None if it is not."""
    if not loss.perceptual or (loss.perceptual_weights is not None and Path(loss.perceptual_weights).is_file()):
        return None
    where = loss.perceptual_weights or "loss.perceptual_weights is not set"
    return f"the perceptual term is off: {where}: {called('convert-lpips')} makes the file"


def latent_statistics(
    network: Network[RGBAVAE], params: Params, batches: Iterator[PictureBatch]
) -> dict[str, list[float]]:
    """`latents_mean` and `latents_std`: mean and standard deviation of each latent channel over all pictures."""
    measure = jax.jit(lambda params, batch: _latent_sums(network(params), batch))
    found = [jax.device_get(measure(params, batch)) for batch in batches]
    sums = [np.asarray(sum(np.asarray(f[i], np.float64) for f in found)) for i in range(3)]
    mean = sums[1] / sums[0]
    std = np.sqrt(np.maximum(sums[2] / sums[0] - mean**2, 1e-12))
    return {"latents_mean": mean.round(4).tolist(), "latents_std": std.round(4).tolist()}


def _latent_sums(vae: RGBAVAE, batch: PictureBatch) -> tuple[Array, Array, Array]:
    """The number of latents, and sums of values and squares of each channel."""
    latents = vae.encode(to_float(batch.pixels)).mode()
    shown = (batch.weights > 0)[:, None, None, None]
    count = jnp.sum(batch.weights > 0) * latents.shape[1] * latents.shape[2]
    sums = [jnp.sum(x, axis=(0, 1, 2), where=shown) for x in (latents, jnp.square(latents))]
    return count, sums[0], sums[1]
