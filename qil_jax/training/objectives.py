"""The losses of the stages, as functions of parameters and a batch.

Losses are sums of weighted errors, not means: the step normalises the weights to sum 1, so that a batch may be split
into microbatches.
"""

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key

from qil_jax.encoders.pixels import to_float
from qil_jax.flow.loss import FlowLoss, draw_sigma, noised, velocity_errors
from qil_jax.models.attention import JOINT, Attend
from qil_jax.models.axes import Axis, Constrain, unconstrained
from qil_jax.models.halves import rotated_by_halves
from qil_jax.models.rgba_vae import RGBAVAE
from qil_jax.models.stack import PLAIN, Scan
from qil_jax.models.vld_mmdit import VLDMMDiT
from qil_jax.training.batches import KINDS, FlowBatch, PictureBatch
from qil_jax.training.parameters import Network, Params
from qil_jax.training.vae_loss import (
    PerceptualLoss,
    VAELoss,
    blend,
    kl_between,
    kl_normal,
    opaque,
    reconstruction_terms,
    straight_through_clip,
)

SIGMA_BUCKETS = 5
"""The loss is reported in bins of sigma: [0, 0.2), [0.2, 0.4), ..."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossMetrics:
    """Metrics of a loss.

    Attributes:
      sums: sum and count of each metric by name; their quotient is the mean over a batch.
      rows: loss of each row, by which samples with a loss that is not finite are found.
    """

    sums: dict[str, tuple[Array, Array]]
    rows: Float[Array, " b"]


@runtime_checkable
class Objective(Protocol):
    """A function that returns the loss of a batch whose weights sum to 1, and its metrics.

    The arguments are the trained parameters, the frozen parameters, the batch, and the random key of all noise.
    """

    def __call__(self, params: Params, frozen: Params, batch: Any, key: Array) -> tuple[Array, LossMetrics]:
        """The loss and the metrics of a batch."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """Numerical and memory settings of the transformer's computation.

    Attributes:
      dtype: dtype of activations and of the parameter copy used in matrix products.
      attend: joint attention of text and image.
      scan: settings of the scan over blocks, including recomputation.
      constrain: function that constrains activations to the sharding given by the mesh's rules.
    """

    dtype: Any = jnp.float32
    attend: Attend = JOINT
    scan: Scan = PLAIN
    constrain: Constrain = unconstrained


def row_normals(
    key: Key[Array, ""], rows: Int[Array, " b"], shape: tuple[int, ...], constrain: Constrain = unconstrained
) -> Float[Array, "b ..."]:
    """Standard normal draws by row index, identical on any mesh and in any microbatch."""
    draws = jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row), shape))(rows)
    return constrain(draws, (Axis.BATCH, Axis.TOKENS, None)[: draws.ndim])


def flow_objective(network: Network[VLDMMDiT], config: FlowLoss, compute: Compute) -> Objective:
    """The weighted squared error of the velocity at random noise levels (docs/specification.md, 8)."""

    def objective(params: Params, frozen: Params, batch: FlowBatch, key: Array) -> tuple[Array, LossMetrics]:
        sigma_key, noise_key = jax.random.split(key)
        shift = jnp.sqrt(batch.picture_tokens / 256) if config.shift is None else jnp.float32(config.shift)
        sigma = draw_sigma(row_normals(sigma_key, batch.rows, ()), config, shift=shift)
        noise = row_normals(noise_key, batch.rows, batch.clean.shape[1:], compute.constrain)
        model = network({**frozen, **params}, compute.dtype)
        model.backbone = rotated_by_halves(model.backbone)
        errors = flow_errors(model, batch, sigma, noise, compute)
        return jnp.sum(batch.weights * errors), flow_metrics(errors, batch, sigma)

    return objective


def flow_errors(
    model: VLDMMDiT, batch: FlowBatch, sigma: Float[Array, " b"], noise: Float[Array, "b t c"], compute: Compute
) -> Float[Array, "b t"]:
    """The mean squared error of each token's velocity at given noise levels and noise."""
    tokens = noised(batch.clean, noise, sigma, batch.is_target).astype(compute.dtype)
    velocity = model(
        compute.constrain(tokens, (Axis.BATCH, Axis.TOKENS, None)),
        batch.text.astype(compute.dtype),
        batch.layout,
        sigma=sigma,
        target_kind=batch.target_kinds if model.config.use_additional_t_cond else None,
        attend=compute.attend,
        constrain=compute.constrain,
        scan=compute.scan,
    )
    return velocity_errors(velocity, batch.clean, noise)


def flow_metrics(errors: Float[Array, "b t"], batch: FlowBatch, sigma: Float[Array, " b"]) -> LossMetrics:
    """Metrics of the error by noise level, by kind of token, and by row."""
    is_target = batch.is_target
    bucket = jnp.minimum((sigma * SIGMA_BUCKETS).astype(jnp.int32), SIGMA_BUCKETS - 1)[:, None]
    masks = {f"sigma_{i}": is_target & (bucket == i) for i in range(SIGMA_BUCKETS)}
    masks |= {name: batch.kinds == kind for kind, name in enumerate(KINDS)}
    sums = {f"loss/{name}": (jnp.sum(errors, where=mask), jnp.sum(mask)) for name, mask in masks.items()}
    count = jnp.maximum(jnp.sum(is_target, axis=1), 1)
    return LossMetrics(sums=sums, rows=jnp.sum(errors, axis=1, where=is_target) / count)


def vae_objective(
    network: Network[RGBAVAE],
    config: VAELoss,
    *,
    dtype: Any,
    reference: Params | None,
    perceptual_loss: PerceptualLoss | None,
) -> Objective:
    """The weighted sum of reconstruction, perceptual and regularising terms (docs/specification.md, 8).

    Args:
      dtype: dtype of compute.
      reference: parameters of the initial VAE; None: no term of its posterior.
      perceptual_loss: function that computes LPIPS; None: no perceptual term.
    """

    def objective(params: Params, frozen: Params, batch: PictureBatch, key: Array) -> tuple[Array, LossMetrics]:
        latent_key, colour_key = jax.random.split(key)
        vae = network({**frozen, **params}, dtype)
        true = to_float(batch.pixels)
        size = (true.shape[1] // vae.config.scale_factor, true.shape[2] // vae.config.scale_factor, vae.config.z_dim)
        noise = row_normals(latent_key, batch.rows, size)
        background = jnp.clip(row_normals(colour_key, batch.rows, (3,)) * 0.56, -1, 1)
        terms = vae_terms(vae, true, config, noise=noise, background=background, perceptual_loss=perceptual_loss)
        if reference is not None and config.reference_kl:
            terms["reference_kl"] = _reference_kl(vae, network(reference, dtype), true)
        weights = {"pixel": config.pixel, "colour": config.colour, "perceptual": config.perceptual}
        weights |= {"kl": config.kl, "reference_kl": config.reference_kl}
        rows = sum(weights[name] * term for name, term in terms.items())
        shown = batch.weights > 0
        sums = {f"loss/{name}": (jnp.sum(term, where=shown), jnp.sum(shown)) for name, term in terms.items()}
        return jnp.sum(batch.weights * rows), LossMetrics(sums=sums, rows=jnp.where(shown, rows, 0))

    return objective


def vae_terms(
    vae: RGBAVAE,
    true: Float[Array, "b y x 4"],
    config: VAELoss,
    *,
    noise: Float[Array, "b h w z"],
    background: Float[Array, "b 3"],
    perceptual_loss: PerceptualLoss | None,
) -> dict[str, Float[Array, " b"]]:
    """The unweighted terms of each picture except that of the reference; divergences are per colour value."""
    dtype = vae.quant_conv.kernel[...].dtype
    posterior = jax.tree.map(lambda x: x.astype(jnp.float32), vae.encode(true.astype(dtype)))
    latents = posterior.mean + jnp.exp(0.5 * posterior.logvar) * noise
    raw = vae.decoder(vae.post_quant_conv(latents.astype(dtype))).astype(jnp.float32)
    made = straight_through_clip(raw)
    terms = reconstruction_terms(made, true, config, background=background, perceptual_loss=perceptual_loss)
    return {**terms, "kl": kl_normal(posterior) / math.prod((*true.shape[1:3], 3))}


def _reference_kl(vae: RGBAVAE, reference: RGBAVAE, true: Array) -> Array:
    """KL divergence from the posterior of the frozen initial VAE, averaged over a black and a white background."""
    dtype = vae.quant_conv.kernel[...].dtype
    total = jnp.zeros(true.shape[0])
    for colour in (-1.0, 1.0):
        picture = opaque(blend(true, colour)).astype(dtype)
        frozen = jax.lax.stop_gradient(reference.encode(picture))
        total += kl_between(vae.encode(picture), frozen) / 2
    return total / math.prod((*true.shape[1:3], 3))
