"""Faults of a stack of layers that need no truth: empty layers, copies, layers that hide all others, and overlap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

Layer = UInt8[np.ndarray, "_ _ 4"]
EMPTY, FULL = 0.001, 0.95
"""Coverage (the mean alpha over the canvas) below which a layer is empty, and above which it fills the canvas."""
SAME = 0.05
"""Mean difference of premultiplied RGBA in [0, 1] below which two layers are one picture: what a decoder adds to two
equal pictures stays below it, and so do two copies of one thing that are a fraction of a pixel apart."""
SOLID = 127
"""A layer covers a pixel where its alpha is above this: more than half."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """What is wrong with the layers above the bottom one.

    Attributes:
      upper: how many there are.
      empty: of them, how many cover less than 0.1 % of the canvas.
      duplicates: how many are nearly the picture of a layer below, the bottom one included. Of n equal layers n - 1
        count, as many as could go. Empty layers are no duplicates.
      full_canvas: how many cover more than 95 % of the canvas.
      overlap: of the pixels that any upper layer covers with more than half alpha, the share that two or more do.
    """

    upper: int
    empty: int
    duplicates: int
    full_canvas: int
    overlap: float


@dataclass(frozen=True, kw_only=True)
class HealthRates:
    """Over a dataset: shares of all upper layers, and the mean overlap of the stacks."""

    empty: float
    duplicates: float
    full_canvas: float
    overlap: float


def health(layers: Sequence[Layer]) -> Health:
    """The health of one stack of equally large layers, bottom to top. Time: compares all pairs."""
    coverage = [float(layer[..., 3].mean(dtype=np.float64)) / 255 for layer in layers]
    shown = [i for i, share in enumerate(coverage) if share >= EMPTY]
    copies = [i for i in shown if any(difference(layers[i], layers[j]) < SAME for j in shown if j < i)]
    depth = np.sum([layer[..., 3] > SOLID for layer in layers[1:]], axis=0)
    covered = np.count_nonzero(depth)
    return Health(
        upper=len(layers) - 1,
        empty=sum(share < EMPTY for share in coverage[1:]),
        duplicates=len(copies),
        full_canvas=sum(share > FULL for share in coverage[1:]),
        overlap=np.count_nonzero(depth > 1) / covered if covered else 0.0,
    )


def difference(first: Layer, second: Layer) -> float:
    """Mean absolute difference of premultiplied RGBA in [0, 1] over the pixels where either shows; 0 if none does."""
    either = (first[..., 3] > 0) | (second[..., 3] > 0)
    if not either.any():
        return 0.0
    pixels = [layer[either].astype(np.float32) / 255 for layer in (first, second)]
    for values in pixels:
        values[:, :3] *= values[:, 3:]
    return float(np.abs(pixels[0] - pixels[1]).mean(dtype=np.float64))


def health_rates(stacks: Sequence[Health]) -> HealthRates:
    """The rates of a dataset; 0 where no stack has a layer above its bottom."""
    upper = max(1, sum(stack.upper for stack in stacks))
    return HealthRates(
        empty=sum(stack.empty for stack in stacks) / upper,
        duplicates=sum(stack.duplicates for stack in stacks) / upper,
        full_canvas=sum(stack.full_canvas for stack in stacks) / upper,
        overlap=float(np.mean([stack.overlap for stack in stacks])),
    )
