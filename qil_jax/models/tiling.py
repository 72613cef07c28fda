"""The RGBA-VAE on pictures too large for one pass: overlapping tiles, blended linearly (docs/specification.md, 1)."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

TILE = 256
"""Side of a tile in pixels."""
STRIDE = 192
"""Distance between tiles in pixels; they are blended over TILE - STRIDE pixels."""

Pass = Callable[[Array], Array]
"""A function that encodes or decodes one tile."""


def encode_tiled(encode: Pass, pixels: Float[Array, "b y x c"], *, scale: int) -> Float[Array, "b h w z"]:
    """Latent means of pictures of any size, computed with the memory of one tile.

    Args:
      encode: function from the pixels of one tile to its latents, whose sides are `scale` times smaller.
      pixels: pictures whose sides are multiples of `scale`.
      scale: number of pixels per latent along each side.
    """
    return _tiled(encode, pixels, stride=STRIDE, tile=TILE, out_stride=STRIDE // scale, out_tile=TILE // scale)


def decode_tiled(decode: Pass, latents: Float[Array, "b h w z"], *, scale: int) -> Float[Array, "b y x c"]:
    """Pixels of latents of any size, clamped to [-1, 1] in each tile, computed with the memory of one tile."""
    stride, tile = STRIDE // scale, TILE // scale
    out = _tiled(decode, latents, stride=stride, tile=tile, out_stride=STRIDE, out_tile=TILE)
    return jnp.clip(out, -1.0, 1.0)


def tile_sizes(size: int) -> list[int]:
    """The sizes in pixels of the tiles along a side of `size` pixels."""
    return [min(TILE, size - start) for start in range(0, size, STRIDE)]


def _tiled(run: Pass, x: Array, *, stride: int, tile: int, out_stride: int, out_tile: int) -> Array:
    blend = out_tile - out_stride
    rows: list[list[np.ndarray]] = []
    for top in range(0, x.shape[1], stride):
        row: list[np.ndarray] = []
        for left in range(0, x.shape[2], stride):
            out = np.array(run(x[:, top : top + tile, left : left + tile]))
            if rows:
                _fade(rows[-1][len(row)], out, blend, axis=1)
            if row:
                _fade(row[-1], out, blend, axis=2)
            row.append(out)
        rows.append(row)
    strips = [np.concatenate([part[:, :out_stride, :out_stride] for part in row], axis=2) for row in rows]
    return jnp.asarray(np.concatenate(strips, axis=1))


def _fade(before: np.ndarray, after: np.ndarray, extent: int, *, axis: int) -> None:
    """Blend the first `extent` lines of `after` with the lines of `before` that cover the same place, in place."""
    extent = min(extent, before.shape[axis], after.shape[axis])
    shape = [1] * after.ndim
    shape[axis] = extent
    weight = (np.arange(extent, dtype=after.dtype) / extent).reshape(shape)
    old, new = np.moveaxis(before, axis, 0)[-extent:], np.moveaxis(after, axis, 0)
    weight = np.moveaxis(weight, axis, 0)
    new[:extent] = old * (1 - weight) + new[:extent] * weight
