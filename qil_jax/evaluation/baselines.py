"""What a decomposition has to beat."""

from enum import StrEnum

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Picture = UInt8[np.ndarray, "y x 4"]


class Baseline(StrEnum):
    """Ways to make layers without a model."""

    INPUT = "input"  # the picture as every layer
    COLOURS = "colours"  # k-means on colours; the largest cluster is the ground


def baseline_layers(picture: Picture, count: int, kind: Baseline) -> list[Picture]:
    """`count` layers of a picture, bottom to top.

    The protocol wants two layers or more. For COLOURS, a picture of fewer colours gets clear layers on top: they are
    grouped with what they do not touch, so that they change no score.
    """
    if kind is Baseline.INPUT:
        return [picture] * count
    layers = _colour_layers(picture, count)
    return layers + [np.zeros_like(picture)] * (count - len(layers))


def _colour_layers(picture: Picture, count: int) -> list[Picture]:
    """The ground fills the canvas with its mean colour where other layers lie on it; the others follow by area."""
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
