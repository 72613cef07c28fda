"""Conversion of a record to a sample of the LayerD protocol, and the scores of a decomposition of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from qil_jax.evaluation.baselines import RGBA, Baseline, baseline_layers
from qil_jax.evaluation.layers import Scores, score_stacks
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite_8bit, psnr
from qil_jax.layers.health import Health, health
from qil_jax.layers.resize import FILTER
from qil_jax.records.record import Record


@dataclass(frozen=True, kw_only=True, eq=False)
class TrueSample:
    """The reference of a decomposition, all pictures of one size.

    Attributes:
      picture: composite of the layers, the input of a decomposition.
      layers: true layers, bottom to top.
    """

    picture: RGBA
    layers: Sequence[RGBA]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerResult:
    """The scores of one decomposition.

    Attributes:
      name: name of the sample.
      layers: number of true layers.
      scores: scores of the decomposition after 0, 1, ... merges.
      recomposition: PSNR in dB of the blended layers against the picture, over black or white, whichever is lower.
      baselines: scores of as many layers made without a model.
      health: faults of the decomposition.
      true_health: faults of the true layers.
    """

    name: str
    layers: int
    scores: Sequence[Scores]
    recomposition: float
    baselines: Mapping[Baseline, Sequence[Scores]]
    health: Health
    true_health: Health


def true_sample(record: Record, size: tuple[int, int]) -> TrueSample:
    """A record stretched to (width, height) as inference stretches pictures, without cropping.

    The picture is resized by LANCZOS as in inference, layers by the filter of training, which leaves no faint alpha
    around shapes. Layers of which nothing is left are dropped. Memory: layers times canvas.
    """
    picture = Image.fromarray(composite_8bit(record.layers, record.size))
    layers = (np.asarray(Image.fromarray(x).resize(size, FILTER)) for x in record.to_layered_image().layers)
    return TrueSample(
        picture=np.asarray(picture.resize(size, Image.Resampling.LANCZOS)),
        layers=[layer for layer in layers if layer[..., 3].any()],
    )


def flattened(layers: Sequence[RGBA]) -> RGBA:
    """The blend of layers given bottom to top."""
    boxed = [BoxedLayer(pixels=layer, left=0, top=0, name="") for layer in layers]
    return composite_8bit(boxed, layers[0].shape[1::-1])


def scored(name: str, true: TrueSample, made: Sequence[RGBA]) -> LayerResult:
    """The scores of a decomposition and of the baselines.

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


def sample_rows(true: TrueSample, made: Sequence[RGBA]) -> list[list[RGBA]]:
    """Two rows of pictures: the picture and its true layers; the blend of the decomposition and its layers."""
    return [[true.picture, *true.layers], [flattened(made), *made]]
