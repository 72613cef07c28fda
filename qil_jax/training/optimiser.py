"""AdamW by optax, with the learning rate's course, clipping of the global norm, and the moving average's decay."""

import dataclasses
from enum import StrEnum
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from qil_jax.errors import QilError


class LRSchedule(StrEnum):
    """How the learning rate goes on after the warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"  # to `final_fraction` of itself at the last step


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW. The defaults are what the paper tells (Adam, 1e-5) and common choices where it is silent (training.md 8).

    Attributes:
      warmup_steps: steps over which the learning rate rises from 0.
      final_fraction: what is left of the learning rate at the end of a cosine, as a share.
      weight_decay: of kernels; never of norms, biases and embeddings.
      clip_norm: largest global norm of a gradient.
      accumulate: parts that a batch is cut into, one after the other, to save memory.
      ema_decay: decay of the moving average of parameters, once it has warmed up.
    """

    learning_rate: float = 1e-5
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
            raise QilError(f"OptimiserConfig: average {self.ema_decay} must be at least 0 and below 1")


def learning_rate(config: OptimiserConfig, steps: int) -> optax.Schedule:
    """The learning rate of each step of a run of `steps`."""
    rest = max(1, steps - config.warmup_steps)
    after = (
        optax.cosine_decay_schedule(config.learning_rate, rest, alpha=config.final_fraction)
        if config.schedule is LRSchedule.COSINE
        else optax.constant_schedule(config.learning_rate)
    )
    if not config.warmup_steps:
        return after
    rise = optax.linear_schedule(config.learning_rate / config.warmup_steps, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([rise, after], [config.warmup_steps])


def make_optimiser(config: OptimiserConfig, steps: int) -> optax.GradientTransformation:
    """Clip, then AdamW, for parameters in a dictionary by path."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=_decays,
        ),
    )


def _decays(params: Any) -> dict[str, bool]:
    return {path: path.endswith("/kernel") for path in params}


def ema_weight(config: OptimiserConfig, step: Array) -> Array:
    """What the parameters after a step count in the moving average; the decay warms up: (1 + step) / (10 + step)."""
    return 1 - jnp.minimum(config.ema_decay, (1.0 + step) / (10.0 + step))
