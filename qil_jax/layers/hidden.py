"""What of a layer nobody sees, since others cover it: there a model has painted what the picture does not show."""

import numpy as np
from jaxtyping import Bool, UInt8

from qil_jax.layers.shares import shares_of

SEEN = 4 / 255
"""Least share of a pixel that is seen: where a decoder means 255, its layers may have an alpha of 252."""
ROWS = 64
"""Rows that are looked at together, so that memory does not grow with the picture beside the masks."""


def hidden(layers: UInt8[np.ndarray, "l y x 4"]) -> Bool[np.ndarray, "l y x"]:
    """Where layers have pixels of which less than `SEEN` shows.

    Layer i has the share w_i = a_i (1 - a_{i+1}) ... (1 - a_n) of what is seen. So the pixels of a layer's faintest
    haze count as hidden too, whatever lies above.

    Args:
      layers: straight RGBA of a stack on one canvas, bottom to top.

    Returns:
      For each layer True where its alpha is above 0 and its share below `SEEN`.
    """
    masks = np.empty(layers.shape[:3], bool)
    for top in range(0, layers.shape[1], ROWS):
        alphas = layers[:, top : top + ROWS, :, 3]
        shares = shares_of(alphas.astype(np.float32) / 255)[:-1]
        masks[:, top : top + ROWS] = (shares < SEEN) & (alphas > 0)
    return masks
