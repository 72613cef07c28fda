"""Euler integration of a velocity field from noise to data: one step, and all steps as one compiled loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

Velocity = Callable[[Float[Array, "b t c"], Any], Float[Array, "b t c"]]
"""A function from all tokens and the inputs of one step to the velocity of each token."""


def euler_step(
    tokens: Float[Array, "b t c"],
    velocity: Float[Array, "b t c"],
    *,
    sigmas: Float[Array, "2 b"],
    is_target: Bool[Array, "b t"],
) -> Float[Array, "b t c"]:
    """Tokens after the step x + (sigma_next - sigma) v; conditions and padding keep their values.

    Args:
      tokens: tokens before the step; the sum is computed in their dtype.
      velocity: velocity of each token.
      sigmas: noise levels of each sample before and after the step.
      is_target: true for tokens that are integrated.
    """
    delta = (sigmas[1] - sigmas[0])[:, None, None]
    return tokens + jnp.where(is_target[..., None], delta * velocity.astype(tokens.dtype), 0)


def euler(
    velocity: Velocity,
    tokens: Float[Array, "b t c"],
    *,
    sigmas: Float[Array, "steps1 b"],
    is_target: Bool[Array, "b t"],
    step_inputs: Any,
) -> Float[Array, "b t c"]:
    """Tokens after all Euler steps, as a loop in one program.

    Args:
      velocity: the velocity field of the whole sequence.
      tokens: noise where `is_target`, clean latents elsewhere; the integration runs in their dtype.
      sigmas: decreasing noise levels per sample, ending in 0.
      is_target: true for tokens that are integrated.
      step_inputs: pytree whose leaves have the steps as leading axis; `velocity` receives one step at a time.
    """

    def step(x: Array, xs: tuple[Array, Any]) -> tuple[Array, None]:
        levels, inputs = xs
        return euler_step(x, velocity(x, inputs), sigmas=levels, is_target=is_target), None

    pairs = jnp.stack([sigmas[:-1], sigmas[1:]], axis=1)
    return jax.lax.scan(step, tokens, (pairs, step_inputs))[0]
