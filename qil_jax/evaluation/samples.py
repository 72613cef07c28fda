"""A record as the LayerD protocol sees it, and what is found out about one decomposition of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from qil_jax.evaluation.baselines import Baseline, baseline_layers
from qil_jax.evaluation.health import Health, health
from qil_jax.evaluation.layers import Scores, score_stacks
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite_8bit, psnr
from qil_jax.layers.resize import FILTER
from qil_jax.records.record import Record

Picture = UInt8[np.ndarray, "y x 4"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrueSample:
    """What a decomposition should give: the picture, and its layers bottom to top, all of one size, straight RGBA."""

    picture: Picture
    layers: Sequence[Picture]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerResult:
    """One scored decomposition.

    Attributes:
      layers: how many the truth has.
      scores: after 0, 1, ... merges.
      recomposition: dB of the blended layers against the picture, over black or white, whichever is lower.
      baselines: the scores of layers made without a model, as many as the truth has.
      health, true_health: of what was made, and of the truth.
    """

    name: str
    layers: int
    scores: Sequence[Scores]
    recomposition: float
    baselines: Mapping[Baseline, Sequence[Scores]]
    health: Health
    true_health: Health


def true_sample(record: Record, size: tuple[int, int]) -> TrueSample:
    """A record at (width, height), stretched as inference stretches pictures, uncropped; at its own size unchanged.

    The picture is resized by inference's LANCZOS; layers by the filter of training, which leaves no haze around shapes.
    Layers of which nothing is left are dropped. Memory: layers times canvas.
    """
    picture = Image.fromarray(composite_8bit(record.layers, record.size))
    layers = (np.asarray(Image.fromarray(x).resize(size, FILTER)) for x in record.to_layered_image().layers)
    return TrueSample(
        picture=np.asarray(picture.resize(size, Image.Resampling.LANCZOS)),
        layers=[layer for layer in layers if layer[..., 3].any()],
    )


def flattened(layers: Sequence[Picture]) -> Picture:
    """Layers blended, bottom to top."""
    boxed = [BoxedLayer(pixels=layer, left=0, top=0, name="") for layer in layers]
    return composite_8bit(boxed, layers[0].shape[1::-1])


def scored(name: str, true: TrueSample, made: Sequence[Picture]) -> LayerResult:
    """Score a decomposition and what it has to beat.

    Raises:
      ValueError: if either has fewer than two layers, or sizes differ.
    """
    baselines = {kind: baseline_layers(true.picture, len(true.layers), kind) for kind in Baseline}
    return LayerResult(
        name=name,
        layers=len(true.layers),
        scores=score_stacks(made, true.layers),
        recomposition=psnr(flattened(made), true.picture),
        baselines={kind: score_stacks(layers, true.layers) for kind, layers in baselines.items()},
        health=health(made),
        true_health=health(true.layers),
    )


def sample_rows(true: TrueSample, made: Sequence[Picture]) -> list[list[Picture]]:
    """Two rows to look at: the picture and its layers, and below them what was made, blended and by layer."""
    return [[true.picture, *true.layers], [flattened(made), *made]]
