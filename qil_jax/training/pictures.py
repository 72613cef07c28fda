"""Latents and decoder outputs as 8-bit pictures, for validation sheets."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import UInt8

from qil_jax.models.rgba_vae import RGBAVAE


def decoded(vae: RGBAVAE, latents: np.ndarray) -> UInt8[np.ndarray, "p y x 4"]:
    """Normalised latents [p, h, w, z] as pictures, decoded one at a time."""
    graph, state = nnx.split(vae)
    dtype = vae.quant_conv.kernel[...].dtype
    return np.concatenate([to_pixels(_decode(graph, state, jnp.asarray(z[None], dtype))) for z in latents])


@jax.jit(static_argnums=0)
def _decode(graph: nnx.GraphDef[RGBAVAE], state: nnx.State, latents: Array) -> Array:
    vae = nnx.merge(graph, state)
    return vae.decode(vae.denormalise(latents))


def to_pixels(pictures: Array) -> UInt8[np.ndarray, "b y x 4"]:
    """Values in [-1, 1] as 8 bits."""
    return np.round((np.asarray(pictures, np.float32) * 0.5 + 0.5).clip(0, 1) * 255).astype(np.uint8)
