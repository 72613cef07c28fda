"""What windows of neighbouring pixels tell: means, extremes, and affine fits of one quantity by others."""

import numpy as np
from jaxtyping import Float, Float32, Float64, Shaped

NO_VARIANCE = 1e-5
"""Variance that is none."""
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


class Guide:
    """A guide, of which values are affine functions in windows of 3 x 3 pixels.

    These are the coefficients of a guided filter (He and Sun, "Fast Guided Filter", arXiv 1505.00996). A window of nine
    pixels fits four numbers, and would follow a texture under a soft shadow. So slopes shrink by what a fit leaves of
    the value's variance, and a window counts the less the more it leaves.
    """

    def __init__(self, guide: Float32[np.ndarray, "c h w"], *, epsilon: float, shrinking: float):
        """Prepare fits to a guide.

        Args:
          guide: the guide, with values in [0, 1].
          epsilon: regularisation of the fits.
          shrinking: how much of a slope goes for the part of the variance that a fit leaves.
        """
        self._shrinking = shrinking
        self._guide = guide.astype(np.float64)
        self._centre = window_mean(self._guide)
        variance = window_mean(self._guide[:, None] * self._guide) - self._centre[:, None] * self._centre
        self._inverse = np.linalg.inv(np.moveaxis(variance, (0, 1), (-2, -1)) + epsilon * np.eye(len(guide)))

    def fits(
        self, values: Float32[np.ndarray, "s h w"]
    ) -> tuple[Float32[np.ndarray, "s c h w"], Float32[np.ndarray, "s h w"]]:
        """Slopes and offsets of values as affine functions of the guide, averaged over the windows about a pixel."""
        slopes, offsets = np.zeros((len(values), *self._guide.shape), np.float32), values.astype(np.float32)
        for i, value in enumerate(values):
            low, high = neighbours(value)
            varies = np.nonzero(low < high)
            if not varies[0].size:
                continue
            # Where a value varies, with all windows that reach there and what they see.
            outer, inner = (tuple(slice(max(0, at.min() - n), at.max() + n + 1) for at in varies) for n in (3, 1))
            within = tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
            slope, offset = self._fit(value[outer].astype(np.float64), outer)
            slopes[i][:, *inner], offsets[i][inner] = slope[:, *within], offset[within]
        return slopes, offsets

    def _fit(self, value: Float64[np.ndarray, "h w"], part: tuple[slice, ...]) -> tuple[np.ndarray, np.ndarray]:
        guide, centre, mean = self._guide[:, *part], self._centre[:, *part], window_mean(value)
        covariance = window_mean(guide * value) - centre * mean
        slope = np.einsum("yxcd,dyx->cyx", self._inverse[part], covariance)
        whole = np.maximum(window_mean(value * value) - mean**2, 0)
        left = np.maximum(whole - (slope * covariance).sum(axis=0), 0)
        slope *= np.clip(1 - self._shrinking * left / (whole + NO_VARIANCE), 0, 1)
        weight = 1 / (left + POOR)
        near = window_mean(weight)
        offset = window_mean(weight * (mean - (slope * centre).sum(axis=0)))
        return window_mean(weight * slope) / near, offset / near
