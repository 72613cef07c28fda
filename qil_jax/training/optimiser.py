"""AdamW or Muon by optax, with learning rate schedules, clipping of the gradient's global norm, and the EMA's decay."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int

from qil_jax.choices import LRSchedule, OptimiserKind
from qil_jax.errors import QilError
from qil_jax.training.muon import KERNELS, Layout, scale_by_muon

DECAYED = ("/kernel", "/lora/a", "/lora/b")
"""Ends of the paths of parameters that have weight decay."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """Hyperparameters of the optimiser and of the EMA.

    The defaults are the paper's (Adam, 1e-5: arXiv 2512.15603, section 4.2), and common values where it gives none.

    Attributes:
      kind: rule of the kernels of blocks, adamw or muon; all other parameters have AdamW.
      learning_rate: peak learning rate, above 0; with muon that of the kernels of blocks.
      adamw_learning_rate: with muon the peak learning rate of the parameters that have AdamW, above 0; None:
        `learning_rate`.
      schedule: schedule of the learning rates after the warm-up.
      warmup_steps: number of steps over which the learning rate rises linearly from near 0; 0: no warm-up.
      final_fraction: learning rate at the end of a cosine, as a fraction of the peak.
      beta1: decay rate of Adam's first moment.
      beta2: decay rate of Adam's second moment.
      epsilon: constant added to the root of Adam's second moment.
      weight_decay: decay rate of kernels and of both factors of low-rank changes; norms, biases and embeddings have no
        weight decay.
      clip_norm: maximum global norm of a gradient, above 0; larger gradients are scaled down to it.
      accumulate: number of microbatches into which a batch is split to save memory; it divides `data.loader.rows`.
      ema_decay: decay of the exponential moving average (EMA) of parameters after its warm-up, in [0, 1).
    """

    kind: OptimiserKind = OptimiserKind.ADAMW
    learning_rate: float = 1e-5
    adamw_learning_rate: float | None = None
    schedule: LRSchedule = LRSchedule.CONSTANT
    warmup_steps: int = 0
    final_fraction: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    accumulate: int = 1
    ema_decay: float = 0.9999

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.learning_rate <= 0 or self.clip_norm <= 0:
            raise QilError("OptimiserConfig: accumulate, learning_rate and clip_norm must be positive")
        if not 0 <= self.ema_decay < 1:
            raise QilError(f"OptimiserConfig: ema_decay {self.ema_decay} must be at least 0 and below 1")
        if self.adamw_learning_rate is None:
            return
        if not 0 < self.adamw_learning_rate < math.inf:
            raise QilError(
                f"OptimiserConfig: adamw_learning_rate {self.adamw_learning_rate} must be above 0 and finite"
            )
        if self.kind is OptimiserKind.ADAMW:
            raise QilError(
                "OptimiserConfig: adamw_learning_rate is that of the parameters that muon leaves to AdamW, and kind is "
                "adamw: set learning_rate alone, or kind=muon"
            )


def learning_rate(config: OptimiserConfig, steps: int, peak: float | None = None) -> optax.Schedule:
    """The learning rate of each step of a run of `steps` steps, whose peak is `config.learning_rate` or another."""
    peak = config.learning_rate if peak is None else peak
    rest = max(1, steps - config.warmup_steps)
    after = (
        optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction)
        if config.schedule is LRSchedule.COSINE
        else optax.constant_schedule(peak)
    )
    if not config.warmup_steps:
        return after
    rise = optax.linear_schedule(peak / config.warmup_steps, peak, config.warmup_steps)
    return optax.join_schedules([rise, after], [config.warmup_steps])


def make_optimiser(config: OptimiserConfig, steps: int, layout: Layout | None = None) -> optax.GradientTransformation:
    """Gradient clipping followed by AdamW or Muon, for a dictionary of parameters by path.

    Args:
      config: hyperparameters.
      steps: number of steps of the whole run.
      layout: shardings of the parameters, by which Muon divides its work; None: it is not divided.
    """
    adamw = optax.adamw(
        learning_rate(config, steps, config.adamw_learning_rate),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=_decays,
    )
    clip = optax.clip_by_global_norm(config.clip_norm)
    if config.kind is OptimiserKind.ADAMW:
        return optax.chain(clip, adamw)
    muon = optax.chain(
        scale_by_muon(layout),
        optax.add_decayed_weights(config.weight_decay, _decays),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )
    rules: dict[Any, Any] = {OptimiserKind.MUON: muon, OptimiserKind.ADAMW: adamw}
    return optax.chain(clip, optax.partition(rules, _kinds))


def _kinds(params: Any) -> dict[str, OptimiserKind]:
    return {path: OptimiserKind.MUON if path in KERNELS else OptimiserKind.ADAMW for path in params}


def _decays(params: Any) -> dict[str, bool]:
    return {path: path.endswith(DECAYED) for path in params}


def ema_weight(config: OptimiserConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """The weight of a step's parameters in the EMA: 1 - decay, where the decay warms up as (1 + step) / (10 + step)."""
    return 1 - jnp.minimum(config.ema_decay, (1.0 + step) / (10.0 + step))
