"""Shares: what each layer of a stack has of what is seen, and alphas that give such shares.

Per pixel, layer i has the share w_i = a_i prod_{j>i} (1 - a_j), and what shows through all layers is one share more, so
that shares add up to 1.
"""

import numpy as np
from jaxtyping import Bool, Float32

from qil_jax.layers.windows import neighbours

SURE = 4 / 255
"""Difference of the shares of neighbours up to which there is no edge: a decoder's alphas are noisy."""
FAINT = 2 / 255
"""Smallest share of a layer; and weight of the stack's own alpha, which decides where nothing reaches a layer."""


def shares_of(alphas: Float32[np.ndarray, "l *n"]) -> Float32[np.ndarray, "s *n"]:
    """What each layer has of what is seen, bottom to top, and what shows through all of them."""
    shares, through = np.empty((len(alphas) + 1, *alphas.shape[1:]), np.float32), np.ones_like(alphas[0])
    for i in reversed(range(len(alphas))):
        shares[i] = alphas[i] * through
        through = through * (1 - alphas[i])
    shares[-1] = through
    return shares


def alphas_of(
    shares: Float32[np.ndarray, "s y x"], plain: Float32[np.ndarray, "l y x"]
) -> Float32[np.ndarray, "l y x"]:
    """Alphas of given shares; those that the stack has where nothing reaches a layer."""
    alphas, through = np.empty_like(plain), np.ones_like(plain[0])
    for i in reversed(range(len(plain))):
        weight = np.maximum(FAINT - through / 8, 0)
        alphas[i] = (shares[i] + weight * plain[i]) / np.maximum(through + weight, np.finfo(np.float32).tiny)
        through = np.maximum(through - shares[i], 0)
    return alphas.clip(0, 1, out=alphas)


def valid(shares: Float32[np.ndarray, "s y x"]) -> Float32[np.ndarray, "s y x"]:
    """Shares in [0, 1] that add up to 1; in place."""
    np.clip(shares, 0, 1, out=shares)
    shares /= np.maximum(shares.sum(axis=0), np.finfo(np.float32).tiny)
    return shares


def has_edge(shares: Float32[np.ndarray, "s h w"]) -> Bool[np.ndarray, "h w"]:
    """Where a share differs among neighbours."""
    low, high = neighbours(shares)
    return (high - low).max(axis=0) > SURE
