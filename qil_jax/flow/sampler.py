"""Euler integration of a velocity field from noise to data, as one compiled loop."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jaxtyping import Bool, Float, Int

Velocity = Callable[[Float[Array, "b t c"], Any], Float[Array, "b t c"]]
"""A function from all tokens and the inputs of one step to the velocity of each token."""


def euler(
    velocity: Velocity,
    tokens: Float[Array, "b t c"],
    *,
    sigmas: Float[Array, "steps1 b"],
    is_target: Bool[Array, "b t"],
    step_inputs: Any,
    after_step: Callable[[Int[Array, ""], Float[Array, "b t c"]], None] | None = None,
) -> Float[Array, "b t c"]:
    """Tokens after all Euler steps x <- x + (sigma_next - sigma) v; conditions and padding keep their values.

    Args:
      velocity: the velocity field of the whole sequence.
      tokens: noise where `is_target`, clean latents elsewhere; the integration runs in their dtype.
      sigmas: decreasing noise levels per sample, ending in 0.
      is_target: true for tokens that are integrated.
      step_inputs: pytree whose leaves have the steps as leading axis; `velocity` receives one step at a time.
      after_step: function that is called during tracing with (step index, tokens), to insert host callbacks.
    """
    deltas = sigmas[1:] - sigmas[:-1]

    def step(x: Array, xs: tuple[Array, Array, Any]) -> tuple[Array, None]:
        index, delta, inputs = xs
        v = velocity(x, inputs).astype(x.dtype)
        x = x + jax.numpy.where(is_target[..., None], delta[:, None, None] * v, 0)
        if after_step is not None:
            after_step(index, x)
        return x, None

    indices = jax.numpy.arange(deltas.shape[0])
    return jax.lax.scan(step, tokens, (indices, deltas, step_inputs))[0]
