"""Decompositions that need no model, as lower bounds for the scores of a model."""

from enum import StrEnum

import numpy as np
from jaxtyping import UInt8
from PIL import Image

RGBA = UInt8[np.ndarray, "y x 4"]
"""A straight 8-bit picture."""


class Baseline(StrEnum):
    """Methods that decompose an image without a model."""

    INPUT = "input"  # the picture as every layer
    COLOURS = "colours"  # k-means of colours; the largest cluster is the bottom layer


def baseline_layers(picture: RGBA, count: int, kind: Baseline) -> list[RGBA]:
    """`count` layers of a picture, bottom to top.

    With COLOURS a picture of fewer colours than layers gets transparent layers on top. They overlap nothing, so that
    grouping merges them with other layers and no score changes.
    """
    if kind is Baseline.INPUT:
        return [picture] * count
    layers = _colour_layers(picture, count)
    return layers + [np.zeros_like(picture)] * (count - len(layers))


def _colour_layers(picture: RGBA, count: int) -> list[RGBA]:
    """The largest cluster, its mean colour filled in below the others, and the other clusters by falling area."""
    rgb = Image.fromarray(np.ascontiguousarray(picture[..., :3]))
    clusters = np.asarray(rgb.quantize(count, Image.Quantize.MEDIANCUT, kmeans=10, dither=Image.Dither.NONE))
    by_area = np.argsort(-np.bincount(clusters.ravel()), kind="stable")
    ground = clusters == by_area[0]
    bottom = picture.copy()
    bottom[~ground, :3] = np.rint(picture[ground, :3].mean(0))
    layers = [bottom]
    for cluster in by_area[1:]:
        inside = clusters == cluster
        if inside.any():
            layers.append(np.where(inside[..., None], picture, 0).astype(np.uint8))
    return layers
