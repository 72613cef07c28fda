"""The RGBA-VAE on a mesh: pictures in and out of latents, as many at a time as there are devices."""

import functools

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, UInt8

from qil_jax.models.rgba_vae import RGBAVAE
from qil_jax.models.tiling import decode_tiled, encode_tiled

PLAIN_PIXELS = 1440 * 1440
"""Pictures up to this many pixels are coded in one pass, larger ones in tiles."""


class Autoencoder:
    """Encode and decode with bounded memory: one picture per device at a time, tiles where a picture is large."""

    def __init__(self, vae: RGBAVAE, *, mesh: Mesh):
        self.config = vae.config
        self._devices = mesh.size
        self._rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        graph, self._state = nnx.split(vae)
        self._dtype = vae.quant_conv.kernel[...].dtype
        self._encode = jax.jit(functools.partial(_encode, graph))
        self._decode = jax.jit(functools.partial(_decode, graph))

    def encode(self, pixels: Float[np.ndarray, "b y x c"]) -> Float[np.ndarray, "b h w z"]:
        """Pictures in [-1, 1] to normalised latents (the posterior's mode)."""
        scale = self.config.scale_factor
        run = lambda x: self._encode(self._state, x)
        tiled = pixels.shape[1] * pixels.shape[2] > PLAIN_PIXELS
        return self._by_device(functools.partial(encode_tiled, run, scale=scale) if tiled else run, pixels)

    def decode(self, latents: Float[np.ndarray, "b h w z"]) -> UInt8[np.ndarray, "b y x c"]:
        """Normalised latents to 8-bit pictures."""
        scale = self.config.scale_factor
        run = lambda z: self._decode(self._state, z)
        tiled = latents.shape[1] * latents.shape[2] * scale**2 > PLAIN_PIXELS
        pixels = self._by_device(functools.partial(decode_tiled, run, scale=scale) if tiled else run, latents)
        return np.round((pixels * 0.5 + 0.5).clip(0, 1) * 255).astype(np.uint8)

    def _by_device(self, run, x: np.ndarray) -> np.ndarray:
        outs = []
        for start in range(0, len(x), self._devices):
            rows = x[start : start + self._devices]
            filled = np.concatenate([rows, np.zeros((self._devices - len(rows), *x.shape[1:]), x.dtype)])
            out = run(jax.device_put(filled.astype(self._dtype), self._rows))
            outs.append(np.asarray(out[: len(rows)], np.float32))
        return np.concatenate(outs)


def _encode(graph: nnx.GraphDef[RGBAVAE], state: nnx.State, pixels: jax.Array) -> jax.Array:
    vae = nnx.merge(graph, state)
    return vae.normalise(vae.encode(pixels).mode())


def _decode(graph: nnx.GraphDef[RGBAVAE], state: nnx.State, latents: jax.Array) -> jax.Array:
    vae = nnx.merge(graph, state)
    return vae.decode(vae.denormalise(latents))
