"""The LayerD protocol: comparison of a stack of layers with the true one (docs/specification.md, 10; arXiv 2509.25134).

Both stacks are grouped by depth, aligned in order by dynamic time warping, and scored on the aligned pairs. Then, up to
five times, the neighbours of either stack whose merging gains most are merged and all is scored again, so that a stack
that splits an object in two still scores. Every score is given with the number of merges allowed.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from qil_jax.errors import QilError
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.grouping import front_to_back_groups

LEVELS = 6
"""Number of scores of a sample: for 0 to 5 merges."""
Layer = UInt8[np.ndarray, "_ _ 4"]
Path = list[tuple[int, int]]
"""Aligned pairs, as indices into the predicted and the reference stack."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a pair of layers, or their means over aligned pairs.

    Attributes:
      l1: mean absolute difference of colours where the reference shows, in [0, 1]; lower is better.
      iou: soft intersection over union of the alphas, in [0, 1]; higher is better.
      cost: the cost that the alignment minimises, (l1 + 1 - iou) / 2.
    """

    l1: float
    iou: float
    cost: float


def rgb_l1(prediction: Layer, reference: Layer) -> float:
    """Mean absolute difference of straight colours over the pixels where the reference's alpha is not 0.

    Summed in integers, with the four bytes of a pixel masked as one number, because this takes most of the time.
    """
    shows = reference[..., 3] > 0
    difference = np.maximum(prediction, reference) - np.minimum(prediction, reference)
    difference[..., 3] = 0
    difference.view(np.uint32)[..., 0] *= shows
    return float(difference.sum(dtype=np.int64) / 3 / 255 / (np.count_nonzero(shows) + 1e-8))


def alpha_iou(prediction: Layer, reference: Layer) -> float:
    """Sum of the smaller alphas over the sum of the larger ones; 0 if both layers are transparent."""
    union = float(np.maximum(prediction[..., 3], reference[..., 3]).sum(dtype=np.float64))
    return float(np.minimum(prediction[..., 3], reference[..., 3]).sum(dtype=np.float64)) / union if union else 0.0


def pair_scores(prediction: Layer, reference: Layer) -> Scores:
    """The scores of one pair of layers."""
    l1, iou = rgb_l1(prediction, reference), alpha_iou(prediction, reference)
    return Scores(l1=l1, iou=iou, cost=(l1 + 1 - iou) / 2)


def grouped(layers: Sequence[Layer]) -> list[Layer]:
    """Layers of one depth blended to one, bottom to top."""
    boxed = [BoxedLayer(pixels=layer, left=0, top=0, name="") for layer in layers]
    groups = front_to_back_groups(boxed)
    return [_flat([layers[i] for i in group]) for group in groups]


def align(costs: Float[np.ndarray, "p g"]) -> Path:
    """The cheapest path from the first pair to the last that advances in one stack or both at every step.

    Of equally cheap steps back the diagonal one is taken, then the one in the first stack.
    """
    rows, columns = costs.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    for i in range(rows):
        for j in range(columns):
            total[i + 1, j + 1] = costs[i, j] + min(total[i, j + 1], total[i + 1, j], total[i, j])
    path = [(rows - 1, columns - 1)]
    while path[-1] != (0, 0):
        i, j = path[-1]
        steps = [(total[i, j], (i - 1, j - 1)), (total[i, j + 1], (i - 1, j)), (total[i + 1, j], (i, j - 1))]
        path.append(min(steps, key=lambda step: step[0])[1])
    return path[::-1]


def score_stacks(prediction: Sequence[Layer], reference: Sequence[Layer]) -> list[Scores]:
    """The scores after 0, 1, ... merges, 5 at most; fewer where no merge helps.

    Args:
      prediction: predicted layers, bottom to top, before any merging.
      reference: true layers, likewise, of the same size.

    Raises:
      QilError: if there are fewer than two layers on a side (the protocol skips such samples), or sizes differ.
    """
    shapes = {layer.shape for layer in (*prediction, *reference)}
    if min(len(prediction), len(reference)) < 2 or len(shapes) != 1:
        raise QilError(
            f"{len(prediction)} and {len(reference)} layers of shapes {sorted(shapes)}: each side needs two or more, "
            f"and all must be of one size"
        )
    sides = [grouped(prediction), grouped(reference)]
    path, scores = _aligned(*sides)
    found = [scores]
    while len(found) < LEVELS:
        turned = [(j, i) for i, j in path]
        mine, theirs = _best_merge(sides[0], sides[1], path), _best_merge(sides[1], sides[0], turned)
        if max(mine[0], theirs[0]) <= 0:
            break
        side, at = (0, mine[1]) if mine[0] > theirs[0] else (1, theirs[1])
        sides[side] = [*sides[side][:at], _over(sides[side][at + 1], sides[side][at]), *sides[side][at + 2 :]]
        path, scores = _aligned(*sides)
        found.append(scores)
    return found


def at_level(scores: Sequence[Scores], level: int) -> Scores:
    """The scores with `level` merges allowed: the last ones, if fewer were made."""
    return scores[min(level, len(scores) - 1)]


def mean_scores(samples: Sequence[Sequence[Scores]]) -> list[Scores]:
    """The mean of each score over samples, for each number of merges."""
    fields = [field.name for field in dataclasses.fields(Scores)]
    levels = [[at_level(sample, level) for sample in samples] for level in range(LEVELS)]
    return [Scores(**{name: float(np.mean([getattr(s, name) for s in level])) for name in fields}) for level in levels]


def _aligned(prediction: list[Layer], reference: list[Layer]) -> tuple[Path, Scores]:
    table = [[pair_scores(p, g) for g in reference] for p in prediction]
    path = align(np.array([[scores.cost for scores in row] for row in table]))
    pairs = [table[i][j] for i, j in path]
    means = {f.name: float(np.mean([getattr(pair, f.name) for pair in pairs])) for f in dataclasses.fields(Scores)}
    return path, Scores(**means)


def _best_merge(edited: list[Layer], other: list[Layer], path: Path) -> tuple[float, int]:
    """The largest gain of merging two neighbours of `edited`, and the lower of them; no gain below three layers.

    The gain is estimated from the current pairs, as in LayerD's code: with the merged layer on the lower neighbour's
    pairs, and on the upper one's the best of the merged layer and the next one. `edited` is scored as the prediction,
    whichever stack it is.
    """
    if len(edited) < 3:
        return 0.0, 0
    partners = [{j for i, j in path if i == k} for k in range(len(edited))]
    similarity: Callable[[Layer, set[int]], float] = lambda layer, to: sum(
        1 - pair_scores(layer, other[j]).cost for j in to
    )
    gains = []
    for i in range(len(edited) - 1):
        lower, upper = partners[i], partners[i + 1]
        merged = _over(edited[i + 1], edited[i])
        second = [similarity(merged, upper)]
        if i + 2 < len(edited):
            second += [similarity(edited[i + 2], lower), similarity(edited[i + 2], upper)]
        current = similarity(edited[i], lower) + similarity(edited[i + 1], upper)
        gains.append(similarity(merged, lower) + max(second) - current)
    best = int(np.argmax(gains))
    return gains[best], best


def _over(upper: Layer, lower: Layer) -> Layer:
    """8-bit alpha compositing, rounded as Pillow rounds; under a clear pixel the lower one stays as it is."""
    return np.asarray(Image.alpha_composite(Image.fromarray(lower), Image.fromarray(upper)))


def _flat(layers: Sequence[Layer]) -> Layer:
    flat = layers[0]
    for layer in layers[1:]:
        flat = _over(layer, flat)
    return flat
