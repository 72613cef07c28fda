"""Faults of a stack of layers, measured without a reference: empty, duplicate, full-canvas and overlapping layers."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

Layer = UInt8[np.ndarray, "_ _ 4"]
EMPTY, FULL = 0.001, 0.95
"""Coverage (mean alpha over the canvas) below which a layer counts as empty, and above which as full-canvas."""
SAME = 0.05
"""Mean difference of premultiplied RGBA in [0, 1] below which two layers are duplicates: more than a decoder's error,
and than the difference of two copies that are a fraction of a pixel apart."""
SOLID = 127
"""Alpha of 255 above which a layer covers a pixel: more than half."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """Faults among the layers above the bottom one.

    Attributes:
      upper: number of layers above the bottom one.
      empty: number of upper layers that cover less than 0.1 % of the canvas.
      duplicates: number of non-empty upper layers that nearly equal a layer below, the bottom one included: n - 1 of n
        equal layers.
      full_canvas: number of upper layers that cover more than 95 % of the canvas.
      overlap: share of the pixels covered by any upper layer that two or more cover, in [0, 1].
    """

    upper: int
    empty: int
    duplicates: int
    full_canvas: int
    overlap: float


@dataclass(frozen=True, kw_only=True)
class HealthRates:
    """Rates of faults over a dataset, each in [0, 1].

    Attributes:
      empty: share of upper layers that are empty.
      duplicates: share of upper layers that are duplicates.
      full_canvas: share of upper layers that cover more than 95 % of the canvas.
      overlap: mean overlap of the stacks.
    """

    empty: float
    duplicates: float
    full_canvas: float
    overlap: float


def health(layers: Sequence[Layer]) -> Health:
    """Faults of one stack of layers of one size, bottom to top."""
    coverage = [float(layer[..., 3].mean(dtype=np.float64)) / 255 for layer in layers]
    shown = [i for i, share in enumerate(coverage) if share >= EMPTY]
    copies = {upper for _, _, upper in same_layers({i: layers[i] for i in shown})}
    depth = np.sum([layer[..., 3] > SOLID for layer in layers[1:]], axis=0)
    covered = np.count_nonzero(depth)
    return Health(
        upper=len(layers) - 1,
        empty=sum(share < EMPTY for share in coverage[1:]),
        duplicates=len(copies),
        full_canvas=sum(share > FULL for share in coverage[1:]),
        overlap=np.count_nonzero(depth > 1) / covered if covered else 0.0,
    )


def same_layers(layers: Mapping[int, Layer]) -> list[tuple[float, int, int]]:
    """The pairs of layers whose `difference` is below 5 %: the difference, and both indices, the lower one first.

    Most pairs are told apart by the sums of their blocks: what two sums differ by, the pixels differ by at least.
    """
    sums = {i: _block_sums(layer) for i, layer in layers.items()}
    shown = {i: int(np.count_nonzero(layer[..., 3])) for i, layer in layers.items()}
    found = []
    for lower, upper in itertools.combinations(sorted(layers), 2):
        least = np.abs(sums[lower] - sums[upper]).sum() / max(1, 4 * (shown[lower] + shown[upper]))
        if least <= 1.01 * SAME and (apart := difference(layers[lower], layers[upper])) < SAME:
            found.append((apart, lower, upper))
    return found


def _block_sums(layer: Layer) -> Float[np.ndarray, "_ _ 4"]:
    """Sums of premultiplied RGBA in [0, 1] over blocks of a sixteenth of either side."""
    pixels = layer.astype(np.float32) / 255
    pixels[..., :3] *= pixels[..., 3:]
    for axis, side in enumerate(pixels.shape[:2]):
        pixels = np.add.reduceat(pixels, np.arange(0, side, -(-side // 16)), axis=axis)
    return pixels


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
    """Rates of faults over all stacks; 0 if none has a layer above its bottom one."""
    upper = max(1, sum(stack.upper for stack in stacks))
    return HealthRates(
        empty=sum(stack.empty for stack in stacks) / upper,
        duplicates=sum(stack.duplicates for stack in stacks) / upper,
        full_canvas=sum(stack.full_canvas for stack in stacks) / upper,
        overlap=float(np.mean([stack.overlap for stack in stacks])),
    )
