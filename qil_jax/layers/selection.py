"""Automatic number of layers: what a decomposition into too many layers repeats or leaves empty is taken out."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite_8bit
from qil_jax.layers.health import EMPTY, SAME, difference, same_layers
from qil_jax.layers.layered_image import LayeredImage

WORSE = 0.01
"""Mean difference of premultiplied RGBA in [0, 1] by which the blend may depart further from the picture without a
layer that repeats it."""


def select_layers(layered: LayeredImage, picture: UInt8[np.ndarray, "y x 4"]) -> LayeredImage:
    """The stack without its superfluous layers, in order; `decisions` says of each one why it went.

    In this order: layers that cover less than 0.1 % of the canvas; copies of the picture without which the others still
    blend to it; of layers that are the same, all but the one that the blend needs most; then layers of one name that
    never overlap, neither each other nor what lies between them, become one. At least one layer is kept.

    Args:
      layered: the stack.
      picture: straight RGBA of the stack's size, the picture that it decomposes.
    """
    decisions, kept = list(layered.decisions), list(range(len(layered.layers)))

    def drop(index: int, why: str) -> None:
        kept.remove(index)
        decisions.append(f"layer {index + 1} ({layered.names[index]}) taken out: {why}")

    for i in tuple(kept):
        share = float(layered.layers[i, ..., 3].mean(dtype=np.float64)) / 255
        if share < EMPTY and len(kept) > 1:
            drop(i, f"it covers {share:.2%} of the canvas")
    apart = {i: difference(layered.layers[i], picture) for i in kept}
    for i in sorted((i for i in kept if apart[i] < SAME), key=lambda i: (apart[i], -i)):
        if len(kept) > 1 and _is_needless(layered.layers, kept, i, picture):
            drop(i, "it is a copy of the picture, which the others blend to")
    for pair in _copies(layered.layers, kept):
        if set(pair) <= set(kept):
            lower, upper = pair
            errors = [_error(layered.layers, kept, i, picture) for i in pair]
            spare, other = (lower, upper) if errors[0] < errors[1] else (upper, lower)
            drop(spare, f"it is the same as layer {other + 1} ({layered.names[other]})")
    layers, names = [layered.layers[i] for i in kept], [layered.names[i] for i in kept]
    _merge(layers, names, decisions)
    return dataclasses.replace(layered, layers=np.stack(layers), names=tuple(names), decisions=tuple(decisions))


def _error(layers: np.ndarray, kept: Sequence[int], without: int | None, picture: np.ndarray) -> float:
    rest = [BoxedLayer(pixels=layers[i], left=0, top=0, name="") for i in kept if i != without]
    return difference(composite_8bit(rest, picture.shape[1::-1]), picture)


def _is_needless(layers: np.ndarray, kept: Sequence[int], index: int, picture: np.ndarray) -> bool:
    return _error(layers, kept, index, picture) <= _error(layers, kept, None, picture) + WORSE


def _copies(layers: np.ndarray, kept: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of the same layer, lower one first, the most alike pair first."""
    return [(lower, upper) for _, lower, upper in sorted(same_layers({i: layers[i] for i in kept}))]


def _merge(layers: list[np.ndarray], names: list[str], decisions: list[str]) -> None:
    """Put layers of one name into the lowest of them, in place, where nothing that overlaps lies in between."""
    upper = 1
    while upper < len(layers):
        lower = next((i for i in range(upper) if names[i] == names[upper]), None)
        shown = layers[upper][..., 3] > 0
        if lower is None or any((layer[..., 3] > 0)[shown].any() for layer in layers[lower:upper]):
            upper += 1
            continue
        layers[lower] = np.where(shown[..., None], layers[upper], layers[lower])
        decisions.append(f"two layers named {names[upper]}, which never overlap, became one")
        del layers[upper], names[upper]
