"""Classifier-free guidance with the released norm rescale (docs/specification.md, 6)."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from qil_jax.choices import Rescale


def guide(
    conditional: Float[Array, "b t c"],
    unconditional: Float[Array, "b t c"],
    scale: Float[Array, " b"],
    rescale: Rescale,
) -> Float[Array, "b t c"]:
    """The guided velocity unconditional + scale (conditional - unconditional), rescaled by `rescale`.

    A scale of 1 gives `conditional`. A token whose guided velocity is zero stays zero, where diffusers divides 0 by 0.
    """
    wide = scale[:, None, None].astype(conditional.dtype)
    guided = unconditional + wide * (conditional - unconditional)
    if rescale is Rescale.NORM:
        length = jnp.linalg.norm(guided, axis=-1, keepdims=True)
        target = jnp.linalg.norm(conditional, axis=-1, keepdims=True)
        guided = guided * jnp.where(length > 0, target / jnp.where(length > 0, length, 1), 0)
    return jnp.where(wide == 1, conditional, guided)
