"""Cleaning of a document's layers: rules that drop documents and layers, and merge layers.

The steps follow arXiv 2512.15603, section 4.1; the thresholds are choices of this package (docs/specification.md, 9).
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from qil_jax.documents.anomalies import AnomalyDetector
from qil_jax.documents.limits import CleaningConfig, Merging
from qil_jax.documents.reasons import Dropped, Reason
from qil_jax.errors import counted
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite_8bit, over_white
from qil_jax.layers.grouping import absorbed, cheapest_merges, front_to_back_groups, merge
from qil_jax.layers.visibility import Size, contributing, shown_pixels, visible_pixels


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cleaned:
    """A document after cleaning.

    Attributes:
      layers: layers that remain, bottom to top.
      decisions: changes made to the document, one sentence each.
      counts: number of layers that each rule removed.
    """

    layers: tuple[BoxedLayer, ...]
    decisions: tuple[str, ...]
    counts: Counter[str]


def clean(
    layers: Sequence[BoxedLayer], size: Size, config: CleaningConfig, detectors: Sequence[AnomalyDetector] = ()
) -> Cleaned:
    """Apply all rules in order: quality, contribution, anomalies, grouping, least size, reduction.

    Raises:
      Dropped: if a rule on the whole document refuses it.
    """
    require_size(size, config)
    require_contrast(composite_8bit(layers, size), config)
    decisions, counts = [], Counter[str]()
    kept, gone = contributing(layers, size, config.contribution)
    require_no_anomaly(kept, size, detectors)
    for layer, why in gone:
        decisions.append(f"dropped '{layer.name}': {why}")
        counts[why] += 1
    groups = front_to_back_groups(kept) if config.merging is Merging.DEPTH else []
    if groups and len(groups) < len(kept):
        decisions.append(f"merged {len(kept)} layers into {len(groups)} by depth: those of one depth never overlap")
        counts["merged by depth"] += len(kept) - len(groups)
        kept = merge(kept, groups, size)
    shown, least = shown_pixels(kept, size), config.min_layer_pixels
    groups = absorbed([count < least for count in shown])
    if len(groups) < len(kept):
        decisions += [
            f"merged '{layer.name}' into its neighbour: shows {counted(count, 'pixel')}, {least} needed"
            for layer, count in zip(kept, shown, strict=True)
            if count < least
        ]
        counts["merged as too small"] += len(kept) - len(groups)
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
    """Refuse a canvas that is too small.

    Raises:
      Dropped: with the figures.
    """
    if min(size) < config.min_side:
        raise Dropped(Reason.TOO_SMALL, f"{size[0]} x {size[1]} pixels, each side needs {config.min_side}")


def require_contrast(picture: UInt8[np.ndarray, "y x 4"], config: CleaningConfig) -> None:
    """Refuse a composite of almost one colour.

    Raises:
      Dropped: with the figures.
    """
    deviation = float(over_white(picture)[..., :3].std(axis=(0, 1), dtype=np.float64).max())
    if deviation < config.min_deviation:
        raise Dropped(Reason.TOO_FLAT, f"standard deviation {deviation:.2f} of 255, {config.min_deviation:g} needed")


def require_no_anomaly(layers: Sequence[BoxedLayer], size: Size, detectors: Sequence[AnomalyDetector]) -> None:
    """Refuse a document in which a detector finds something.

    Raises:
      Dropped: with the first detection.
    """
    for detector in detectors:
        for found in detector(layers, size):
            raise Dropped(Reason.ANOMALY, f"{found.kind} at {found.box}")


def require_layers(count: int, config: CleaningConfig) -> None:
    """Refuse a document with too few layers left.

    Raises:
      Dropped: with the figures.
    """
    if count < config.min_layers:
        raise Dropped(Reason.TOO_FEW_LAYERS, f"{count} after cleaning and merging, {config.min_layers} needed")
