"""Reconstruction by an RGBA-VAE, scored by AlphaVAE's protocol (docs/specification.md, 10; arXiv 2507.09308, 3.1).

Both pictures are blended over nine solid colours, truncated to 8 bits, saved as JPEG with Pillow's defaults, and
compared as RGB. A picture's score is the mean over the colours, a dataset's the mean over its categories' means.
"""

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.ndimage import correlate1d

from qil_jax.errors import QilError
from qil_jax.layers.compositing import blended, decibels

BACKGROUNDS = {
    "black": (0, 0, 0), "grey": (128, 128, 128), "white": (255, 255, 255), "red": (255, 0, 0), "green": (0, 255, 0),
    "blue": (0, 0, 255), "yellow": (255, 255, 0), "cyan": (0, 255, 255), "magenta": (255, 0, 255),
}  # fmt: skip
WINDOW, SIGMA = 11, 1.5
"""Side and standard deviation of SSIM's Gaussian window in pixels."""
RGB = UInt8[np.ndarray, "y x 3"]
Metric = Callable[[RGB, RGB], float]
"""A function that scores a picture against its reference."""


def truncated_blend(picture: UInt8[np.ndarray, "y x 4"], background: Sequence[int]) -> RGB:
    """A straight RGBA picture over a solid colour: blended in double precision, truncated (not rounded) to 8 bits."""
    return np.clip(blended(picture, background, np.float64), 0, 255).astype(np.uint8)


def as_jpeg(picture: RGB) -> RGB:
    """A picture saved as JPEG with Pillow's defaults and read again."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG")
    return np.asarray(Image.open(stream))


def psnr(picture: RGB, true: RGB) -> float:
    """PSNR of RGB in dB; 80 for equal pictures, because 1e-8 is added to the mean squared error."""
    return decibels(float(np.mean(np.square(picture.astype(np.float64) - true) / 255**2)) + 1e-8)


def luma_ssim(picture: RGB, true: RGB) -> float:
    """Mean structural similarity of the luma, rounded to 8 bits, over all Gaussian windows that lie inside.

    Raises:
      QilError: if a side is shorter than the window.
    """
    if min(picture.shape[:2]) < WINDOW:
        raise QilError(f"pictures of {picture.shape[1]}x{picture.shape[0]}: SSIM needs {WINDOW} pixels a side")
    x, y = (np.rint(p.astype(np.float64) @ (0.299, 0.587, 0.114)) for p in (picture, true))
    first, second = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x, variance_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    contrast = (2 * covariance + second) / (variance_x + variance_y + second)
    light = (2 * mean_x * mean_y + first) / (mean_x**2 + mean_y**2 + first)
    return float(np.mean(light * contrast))


def _windowed(values: Float[np.ndarray, "y x"]) -> Float[np.ndarray, "v u"]:
    """Gaussian-weighted means of all windows that lie inside."""
    places = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(places**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    half = WINDOW // 2
    smooth = correlate1d(correlate1d(values, weights, axis=0), weights, axis=1)
    return smooth[half:-half, half:-half]


METRICS: dict[str, Metric] = {"psnr": psnr, "ssim": luma_ssim}


def blended_pairs(
    picture: UInt8[np.ndarray, "_ _ 4"], true: UInt8[np.ndarray, "_ _ 4"]
) -> list[tuple[UInt8[np.ndarray, "y x 3"], UInt8[np.ndarray, "y x 3"]]]:
    """A picture and its reference, blended over each of the nine backgrounds and compressed as JPEG.

    Raises:
      QilError: if the sizes of the two differ.
    """
    if picture.shape != true.shape:
        raise QilError(f"a reconstruction of shape {picture.shape} cannot be compared with {true.shape}")
    over = lambda x, colour: as_jpeg(truncated_blend(x, colour))
    return [(over(picture, colour), over(true, colour)) for colour in BACKGROUNDS.values()]


def score_pairs(pairs: Sequence[tuple[RGB, RGB]], metrics: Mapping[str, Metric] = METRICS) -> dict[str, float]:
    """The mean of each metric over pairs of a picture and its reference."""
    return {name: float(np.mean([metric(*pair) for pair in pairs])) for name, metric in metrics.items()}


def by_category(rows: Sequence[tuple[str, Mapping[str, float]]]) -> dict[str, list[Mapping[str, float]]]:
    """Scores grouped by category, from rows of (category, scores)."""
    categories: dict[str, list[Mapping[str, float]]] = {}
    for category, scores in rows:
        categories.setdefault(category, []).append(scores)
    return categories


def plain_mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each score."""
    return {name: float(np.mean([scores[name] for scores in rows])) for name in rows[0]}


def macro_average(rows: Sequence[tuple[str, Mapping[str, float]]]) -> dict[str, float]:
    """The mean over categories of each category's mean, from rows of (category, scores)."""
    return plain_mean([plain_mean(group) for group in by_category(rows).values()])
