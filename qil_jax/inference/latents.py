"""Latents of pictures to tokens of a sequence and back (checkpoint.md 5)."""

import numpy as np
from jaxtyping import Float


def pack(latents: Float[np.ndarray, "l h w z"], patch: int) -> Float[np.ndarray, "t c"]:
    """Each patch x patch square to one token, pictures one after the other, rows first.

    Feature index is z * patch^2 + dy * patch + dx. Sides must be multiples of `patch`.
    """
    pictures, h, w, z = latents.shape
    squares = latents.reshape(pictures, h // patch, patch, w // patch, patch, z)
    return squares.transpose(0, 1, 3, 5, 2, 4).reshape(-1, z * patch * patch)


def unpack(tokens: Float[np.ndarray, "t c"], patch: int, grid: tuple[int, int]) -> Float[np.ndarray, "l h w z"]:
    """The inverse of `pack`; `grid` is rows and columns of one picture in tokens."""
    rows, cols = grid
    squares = tokens.reshape(-1, rows, cols, tokens.shape[-1] // patch**2, patch, patch)
    return squares.transpose(0, 1, 4, 2, 5, 3).reshape(squares.shape[0], rows * patch, cols * patch, -1)
