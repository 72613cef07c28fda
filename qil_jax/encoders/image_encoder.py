"""Encoding and decoding with the RGBA-VAE on a mesh, for inference, training and latent caches."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, UInt8

from qil_jax.encoders.pixels import to_float, to_uint8
from qil_jax.mesh import fetch, put
from qil_jax.models.rgba_vae import RGBAVAE
from qil_jax.models.tiling import decode_tiled, encode_tiled, tile_sizes

PLAIN_PIXELS = 1440 * 1440
"""Pictures up to this many pixels are coded in one pass, larger ones in tiles."""


class Autoencoder:
    """An encoder and decoder with bounded memory. Latents are normalised; encoding returns the posterior's mode."""

    def __init__(self, vae: RGBAVAE, *, mesh: Mesh):
        self.config = vae.config
        self._devices = mesh.size
        self._rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        graph, self.state = nnx.split(vae)
        self._dtype = vae.quant_conv.kernel.get_value().dtype
        self._encode = jax.jit(functools.partial(_encode, graph))
        self._encode_rows = jax.jit(functools.partial(_encode_rows, graph))
        self._decode = jax.jit(functools.partial(_decode, graph))

    def encode(self, pixels: Float[np.ndarray, "b y x c"]) -> Float[np.ndarray, "b h w z"]:
        """Latents of pictures in [-1, 1]: one picture per device at a time, tiles where a picture is large."""
        run = functools.partial(self._encode, self.state)
        if pixels.shape[1] * pixels.shape[2] > PLAIN_PIXELS:
            run = functools.partial(encode_tiled, run, scale=self.config.scale_factor)
        return self._by_device(run, pixels)

    def decode(self, latents: Float[np.ndarray, "b h w z"]) -> UInt8[np.ndarray, "b y x c"]:
        """8-bit pictures of latents: one picture per device at a time, tiles where a picture is large."""
        scale = self.config.scale_factor
        run = functools.partial(self._decode, self.state)
        if latents.shape[1] * latents.shape[2] * scale**2 > PLAIN_PIXELS:
            run = functools.partial(decode_tiled, run, scale=scale)
        return to_uint8(self._by_device(run, latents))

    def lower(self, size: tuple[int, int]) -> list[jax.stages.Lowered]:
        """The programs that encode and decode pictures of `size`, width and height; parameters may be abstract."""
        scale, lowered = self.config.scale_factor, []
        tiled = size[0] * size[1] > PLAIN_PIXELS
        shapes = itertools.product(*({*tile_sizes(n)} if tiled else {n} for n in (size[1], size[0])))
        for high, wide in shapes:
            pixels = (self._devices, high, wide, self.config.input_channels)
            latents = (self._devices, high // scale, wide // scale, self.config.z_dim)
            for run, shape in ((self._encode, pixels), (self._decode, latents)):
                lowered.append(run.lower(self.state, jax.ShapeDtypeStruct(shape, self._dtype, sharding=self._rows)))
        return lowered

    def encode_rows(self, pixels: UInt8[Array, "b p y x c"]) -> Float[Array, "b p h w z"]:
        """Latents in fp32 of a batch that is sharded by rows and stays so: one picture of each row at a time."""
        return self._encode_rows(self.state, pixels)

    def _by_device(self, run: Callable[[Array], Array], x: np.ndarray) -> np.ndarray:
        outs = []
        for start in range(0, len(x), self._devices):
            rows = x[start : start + self._devices]
            filled = np.concatenate([rows, np.zeros((self._devices - len(rows), *x.shape[1:]), x.dtype)])
            out = run(put(filled.astype(self._dtype), self._rows))
            outs.append(fetch(out)[: len(rows)].astype(np.float32))
        return np.concatenate(outs)


def _encode(graph: nnx.GraphDef[RGBAVAE], state: nnx.State, pixels: Array) -> Array:
    vae = nnx.merge(graph, state)
    return vae.normalise(vae.encode(pixels).mode())


def _encode_rows(graph: nnx.GraphDef[RGBAVAE], state: nnx.State, pixels: Array) -> Array:
    vae = nnx.merge(graph, state)
    dtype = vae.quant_conv.kernel[...].dtype

    def one_of_each(pictures: Array) -> Array:
        return vae.normalise(vae.encode(to_float(pictures).astype(dtype)).mode()).astype(jnp.float32)

    return jnp.moveaxis(jax.lax.map(one_of_each, jnp.moveaxis(pixels, 1, 0)), 0, 1)


def _decode(graph: nnx.GraphDef[RGBAVAE], state: nnx.State, latents: Array) -> Array:
    vae = nnx.merge(graph, state)
    return vae.decode(vae.denormalise(latents))
