"""What windows of neighbouring pixels tell: means, extremes, and affine fits of one quantity by others."""

import numpy as np
from jaxtyping import Float, Float32, Shaped

EPSILON = 1e-5
"""Regularisation of the fits, for values in [0, 1]."""
SHRINKING = 3.0
"""How much of a slope goes for the part of the variance that a fit leaves."""
POOR = 1e-3
"""Variance that a fit leaves at which a window counts half."""


def window_mean(values: Float[np.ndarray, "*n h w"], radius: int = 1) -> Float[np.ndarray, "*n h w"]:
    """Means over square windows of 2 `radius` + 1, which end at the border, along the last two axes."""
    side = 2 * radius + 1
    padded = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(radius, radius)] * 2)
    height, width = values.shape[-2:]
    rows = sum((padded[..., i : i + height, :] for i in range(1, side)), padded[..., :height, :])
    sums = sum((rows[..., i : i + width] for i in range(1, side)), rows[..., :width])
    high, wide = (_within(n, radius).astype(values.dtype) for n in (height, width))
    return sums / (high[:, None] * wide)


def _within(length: int, radius: int) -> np.ndarray:
    """Number of pixels of an axis in the window about each."""
    at = np.arange(length)
    return np.minimum(at + radius, length - 1) - np.maximum(at - radius, 0) + 1


def neighbours(
    values: Shaped[np.ndarray, "*n h w"],
) -> tuple[Shaped[np.ndarray, "*n h w"], Shaped[np.ndarray, "*n h w"]]:
    """The smallest and the largest value in windows of 3 x 3, along the last two axes."""
    padded = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(1, 1)] * 2, mode="edge")
    found = []
    for most in (np.minimum, np.maximum):
        high = most(most(padded[..., :-2, :], padded[..., 1:-1, :]), padded[..., 2:, :])
        found.append(most(most(high[..., :-2], high[..., 1:-1]), high[..., 2:]))
    return found[0], found[1]


def affine_fits(
    values: Float32[np.ndarray, "s h w"], guide: Float32[np.ndarray, "c h w"], epsilon: float = EPSILON
) -> tuple[Float32[np.ndarray, "s c h w"], Float32[np.ndarray, "s h w"]]:
    """Slopes and offsets of values as affine functions of a guide, fitted in windows of 3 x 3 and averaged over them.

    These are the coefficients of a guided filter (He and Sun, "Fast Guided Filter", arXiv 1505.00996). A window of nine
    pixels fits four numbers, and would follow a texture under a soft shadow. So slopes shrink by what a fit leaves of
    the value's variance, and a window counts the less the more it leaves.
    """
    values, guide = values.astype(np.float64), guide.astype(np.float64)
    means, centre = window_mean(values), window_mean(guide)
    variance = window_mean(guide[:, None] * guide) - centre[:, None] * centre
    inverse = np.linalg.inv(np.moveaxis(variance, (0, 1), (-2, -1)) + epsilon * np.eye(len(guide)))
    slopes = np.empty((len(values), *guide.shape), np.float32)
    offsets = np.empty(values.shape, np.float32)
    for i, value in enumerate(values):
        covariance = window_mean(guide * value) - centre * means[i]
        slope = np.einsum("yxcd,dyx->cyx", inverse, covariance)
        whole = np.maximum(window_mean(value * value) - means[i] ** 2, 0)
        left = np.maximum(whole - (slope * covariance).sum(axis=0), 0)
        slope *= np.clip(1 - SHRINKING * left / (whole + EPSILON), 0, 1)
        weight = 1 / (left + POOR)
        near = window_mean(weight)
        slopes[i] = window_mean(weight * slope) / near
        offsets[i] = window_mean(weight * (means[i] - (slope * centre).sum(axis=0))) / near
    return slopes, offsets
