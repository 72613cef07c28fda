"""From a document's layers to layers worth training on: pure rules with thresholds and counters (paper.md 4)."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from qil_jax.data.anomalies import AnomalyDetector
from qil_jax.data.boxed import BoxedLayer, composite_8bit, over_white, put_over
from qil_jax.data.grouping import cheapest_merges, front_to_back_groups, merge
from qil_jax.data.limits import CleaningConfig
from qil_jax.data.reasons import Dropped, Reason
from qil_jax.layered_image import visible_box

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cleaned:
    """What came of a document: its layers, a sentence per decision, and how often each rule acted."""

    layers: tuple[BoxedLayer, ...]
    decisions: tuple[str, ...]
    counts: Counter[str]


def clean(
    layers: Sequence[BoxedLayer], size: Size, config: CleaningConfig, detectors: Sequence[AnomalyDetector] = ()
) -> Cleaned:
    """Apply all rules in order: quality, contribution, anomalies, grouping, reduction.

    Raises:
      Dropped: a rule that looks at the whole document refuses it.
    """
    require_size(size, config)
    require_contrast(composite_8bit(layers, size), config)
    decisions, counts = [], Counter[str]()
    kept, gone = contributing(layers, size, config)
    require_no_anomaly(kept, size, detectors)
    for layer, why in gone:
        decisions.append(f"dropped '{layer.name}': {why}")
        counts[why] += 1
    groups = front_to_back_groups(kept)
    if len(groups) < len(kept):
        decisions.append(f"merged {len(kept)} layers into {len(groups)} by depth: those of one depth never overlap")
        counts["merged by depth"] += len(kept) - len(groups)
        kept = merge(kept, groups, size)
    if len(kept) > config.max_layers:
        pairs = cheapest_merges(visible_pixels(kept, size), config.max_layers)
        merged = merge(kept, pairs, size)
        for group, layer in zip(pairs, merged, strict=True):
            if len(group) > 1:
                decisions.append(f"merged {len(group)} neighbours into '{layer.name}': {config.max_layers} at most")
        counts["merged to the limit"] += len(kept) - len(merged)
        kept = merged
    require_layers(len(kept), config)
    return Cleaned(layers=tuple(kept), decisions=tuple(decisions), counts=counts)


def require_size(size: Size, config: CleaningConfig) -> None:
    """Refuse a canvas that is too small."""
    if min(size) < config.min_side:
        raise Dropped(Reason.TOO_SMALL, f"{size[0]} x {size[1]} pixels, each side needs {config.min_side}")


def require_contrast(picture: UInt8[np.ndarray, "y x 4"], config: CleaningConfig) -> None:
    """Refuse a picture that shows next to nothing."""
    deviation = float(over_white(picture)[..., :3].std(axis=(0, 1), dtype=np.float64).max())
    if deviation < config.min_deviation:
        raise Dropped(Reason.TOO_FLAT, f"standard deviation {deviation:.2f} of 255, {config.min_deviation:g} needed")


def require_no_anomaly(layers: Sequence[BoxedLayer], size: Size, detectors: Sequence[AnomalyDetector]) -> None:
    """Refuse a document in which a detector finds something."""
    for detector in detectors:
        for found in detector(layers, size):
            raise Dropped(Reason.ANOMALY, f"{found.kind} at {found.box}")


def require_layers(count: int, config: CleaningConfig) -> None:
    """Refuse a document with too few layers left."""
    if count < config.min_layers:
        raise Dropped(Reason.TOO_FEW_LAYERS, f"{count} after cleaning and merging, {config.min_layers} needed")


def contributing(
    layers: Sequence[BoxedLayer], size: Size, config: CleaningConfig
) -> tuple[list[BoxedLayer], list[tuple[BoxedLayer, str]]]:
    """The layers that matter to the composite, cut to what they show, and those that do not, with why.

    Going up, a layer matters if the composite with it differs from that without it, given the layers that are left
    below it and all that is above it: so the composite stays the same, whatever combination is taken away.
    """
    through = _through(layers, size)
    below = np.zeros((size[1], size[0], 4), np.float32)
    kept, gone = [], []
    for layer, lets in zip(layers, through, strict=True):
        if not layer.pixels[..., 3].any():
            gone.append((layer, "empty"))
            continue
        ground = below[layer.window]
        alpha = layer.pixels[..., 3:].astype(np.float32) / 255
        target = np.ones((*alpha.shape[:2], 4), np.float32)
        target[..., :3] = layer.pixels[..., :3].astype(np.float32) / 255
        weight = alpha * (lets[..., None].astype(np.float32) / 65535)
        if float(np.abs(weight * (target - ground)).max()) > config.contribution:
            kept.append(trimmed(layer))
            put_over(below, layer)
        else:
            gone.append((layer, "hidden" if float(weight.max()) <= config.contribution else "same as below it"))
    return kept, gone


def trimmed(layer: BoxedLayer) -> BoxedLayer:
    """A layer cut to the box of its positive alpha; it must have some."""
    box = visible_box(layer.pixels[..., 3] > 0)
    if box is None:
        raise ValueError(f"layer '{layer.name}' shows nothing: it has no box")
    left, top, right, bottom = box
    pixels = np.ascontiguousarray(layer.pixels[top:bottom, left:right])
    return dataclasses.replace(layer, pixels=pixels, left=layer.left + left, top=layer.top + top)


def visible_pixels(layers: Sequence[BoxedLayer], size: Size) -> Float[np.ndarray, " l"]:
    """How many pixels' worth of each layer the composite shows: its alpha times what the layers above let through."""
    through = _through(layers, size)
    shown = [(x.pixels[..., 3] / 255 * (t / 65535)).sum() for x, t in zip(layers, through, strict=True)]
    return np.array(shown, np.float64)


def _through(layers: Sequence[BoxedLayer], size: Size) -> list[np.ndarray]:
    """What the layers above let through, per layer in its box: uint16, rounded up so that 0 is truly nothing."""
    left = np.ones((size[1], size[0]), np.float32)
    through = []
    for layer in reversed(layers):
        through.append(np.ceil(left[layer.window] * 65535).astype(np.uint16))
        left[layer.window] *= 1 - layer.pixels[..., 3].astype(np.float32) / 255
    return through[::-1]
