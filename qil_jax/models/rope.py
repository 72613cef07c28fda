"""Rotary embeddings of integer token positions (layer, row, column).

Layer3D RoPE (docs/specification.md, 3; arXiv 2512.15603, 3.2): the composite is layer 0, layers are 1..L, the
condition is -1; rows and columns are centred, so that all pictures of a sample align; text lies on the diagonal beyond
all image positions.
"""

import dataclasses
from enum import IntEnum, StrEnum

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

Positions = Int[np.ndarray, "t 3"]


class LayerIndex(IntEnum):
    """Indices on the layer axis of pictures that are not layers; layers have 1..L from the bottom to the top."""

    CONDITION = -1
    COMPOSITE = 0


def image_positions(grid: tuple[int, int], layer_indices: tuple[int, ...]) -> Positions:
    """Positions of the tokens of concatenated pictures, each row-major over the same grid.

    Args:
      grid: numbers of rows and columns in tokens (16 pixels each in the release).
      layer_indices: layer index of each picture, in sequence order.

    Returns:
      The `len(layer_indices) * rows * cols` positions (layer, row, column).
    """
    rows, cols = grid
    axes = np.meshgrid(np.array(layer_indices), _centred(rows), _centred(cols), indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, 3).astype(np.int32)


def text_positions(count: int, *, offset: int) -> Positions:
    """Positions of `count` text tokens: token j has offset + j on all three axes."""
    return np.repeat(np.arange(offset, offset + count, dtype=np.int32)[:, None], 3, axis=1)


def text_offset(grid: tuple[int, int], *, targets: int = 1) -> int:
    """The first text position: beyond half the grid, and beyond the layer index of every denoised picture.

    Args:
      grid: numbers of rows and columns in tokens.
      targets: number of denoised pictures (L + 1 with the composite; 1 in Qwen-Image, without Layer3D RoPE).
    """
    return max(grid[0] // 2, grid[1] // 2, targets)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotary:
    """Cosine and sine of the angle of every feature pair in fp32, the same for all blocks and heads."""

    cos: Float[Array, "b t half"]
    sin: Float[Array, "b t half"]


def rotary_embedding(
    positions: Int[Array | np.ndarray, "b t axes"], axes_dims: tuple[int, ...], theta: float = 10000.0
) -> Rotary:
    """Rotations of a head's feature pairs, axis by axis, by position times theta^(-2k/dim) radians."""
    angles = [
        positions[..., axis, None].astype(jnp.float32) * jnp.asarray(_frequencies(dim, theta))
        for axis, dim in enumerate(axes_dims)
    ]
    joined = jnp.concatenate(angles, axis=-1)
    return Rotary(cos=jnp.cos(joined), sin=jnp.sin(joined))


def mrope_embedding(positions: Int[Array, "b t 3"], sections: tuple[int, ...], theta: float) -> Rotary:
    """Rotations of a head's pairs (k, k + d/2) by M-RoPE (arXiv 2409.12191, 2.1).

    Args:
      positions: time, row and column of each token; all three are equal in text, where this is an ordinary RoPE.
      sections: numbers of consecutive pairs that rotate by time, row and column; half a head's width in all.
      theta: base of the wavelengths, which are those of a single axis.
    """
    axes = np.repeat(np.arange(len(sections)), sections)
    angles = positions[..., axes].astype(jnp.float32) * jnp.asarray(_frequencies(2 * len(axes), theta))
    return Rotary(cos=jnp.cos(angles), sin=jnp.sin(angles))


class Rotation(StrEnum):
    """The features of a head that are rotated as a pair."""

    INTERLEAVED = "interleaved"  # neighbours, in which order the release stores them
    HALVES = "halves"  # k and k + d/2


def rotate(x: Float[Array, "b t n d"], by: Rotary, how: Rotation) -> Float[Array, "b t n d"]:
    """Rotate the feature pairs of every head."""
    return rotate_half(x, by) if how is Rotation.HALVES else rotate_interleaved(x, by)


def rotate_interleaved(x: Float[Array, "b t n d"], by: Rotary) -> Float[Array, "b t n d"]:
    """Rotate the pairs (x[2k], x[2k+1]): the convention of the transformer."""
    cos, sin = by.cos[:, :, None], by.sin[:, :, None]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape).astype(x.dtype)


def rotate_half(x: Float[Array, "b t n d"], by: Rotary) -> Float[Array, "b t n d"]:
    """Rotate the pairs (x[k], x[k + d/2]): the convention of the language model."""
    cos, sin = by.cos[:, :, None], by.sin[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _centred(size: int) -> np.ndarray:
    return np.arange(size) - (size - size // 2)


def _frequencies(dim: int, theta: float) -> np.ndarray:
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.float32(1) / np.power(np.float32(theta), exponent)
