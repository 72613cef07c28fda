"""Conversion between latents and sequence tokens, for numpy and jax arrays (docs/specification.md, 2)."""

from typing import TypeVar

import jax
import numpy as np

AnyArray = TypeVar("AnyArray", np.ndarray, jax.Array)


def pack(latents: AnyArray, patch: int) -> AnyArray:
    """Pack each patch x patch square of latents into one token; pictures are concatenated, each row-major.

    The feature index is z * patch^2 + dy * patch + dx.

    Args:
      latents: latents [..., l, h, w, z] whose sides h and w are multiples of `patch`.

    Returns:
      The tokens [..., t, c].
    """
    *batch, pictures, h, w, z = latents.shape
    squares = latents.reshape(*batch, pictures, h // patch, patch, w // patch, patch, z)
    squares = squares.swapaxes(-3, -4).swapaxes(-1, -2).swapaxes(-2, -3)  # h dy w dx z -> h w z dy dx
    return squares.reshape(*batch, -1, z * patch * patch)


def unpack(tokens: AnyArray, patch: int, grid: tuple[int, int]) -> AnyArray:
    """The inverse of `pack`: [..., t, c] to [..., l, h, w, z]; `grid` is rows and columns of one picture in tokens."""
    rows, cols = grid
    *batch, _, c = tokens.shape
    squares = tokens.reshape(*batch, -1, rows, cols, c // patch**2, patch, patch)
    squares = squares.swapaxes(-2, -3).swapaxes(-1, -2).swapaxes(-3, -4)  # the inverse permutation
    return squares.reshape(*batch, -1, rows * patch, cols * patch, c // patch**2)
