"""The LayerD protocol against values worked out by hand, against brute force, and against a second implementation."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qil_jax.evaluation.layers import (
    LEVELS,
    align,
    alpha_iou,
    at_level,
    grouped,
    mean_scores,
    pair_scores,
    rgb_l1,
    score_stacks,
)

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def layer(box: tuple[int, int, int, int], colour=RED, alpha: int = 255, side: int = 8) -> np.ndarray:
    """A rectangle (left, top, right, bottom) on a clear canvas."""
    left, top, right, bottom = box
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[top:bottom, left:right] = (*colour, alpha)
    return pixels


GROUND = layer((0, 0, 8, 8), BLUE)


def test_pairs_by_hand():
    reference, half = layer((0, 0, 4, 4)), layer((0, 0, 4, 2))
    assert alpha_iou(half, reference) == 0.5
    assert rgb_l1(half, reference) == pytest.approx((8 * 1 / 3) / 16)  # black where the prediction is clear
    assert alpha_iou(layer((0, 0, 4, 4), alpha=51), reference) == pytest.approx(0.2)
    assert rgb_l1(layer((0, 0, 4, 4), alpha=1), reference) == 0  # colours are straight
    assert rgb_l1(layer((0, 0, 8, 8), GREEN), layer((0, 0, 1, 1), GREEN, alpha=1)) == 0  # only where it shows
    assert alpha_iou(np.zeros_like(half), np.zeros_like(half)) == 0
    assert pair_scores(half, reference).cost == pytest.approx((1 / 6 + 0.5) / 2)


def test_equal_stacks_score_0_and_1():
    stack = [GROUND, layer((0, 0, 4, 4)), layer((2, 2, 6, 6), GREEN, 120), layer((5, 5, 8, 8))]
    scores = score_stacks(stack, stack)
    assert scores[0].l1 == 0 and scores[0].iou == 1 and scores[0].cost == 0 and len(scores) == 1


def test_neighbours_that_never_touch_are_one_layer():
    apart = [GROUND, layer((0, 0, 2, 2)), layer((4, 4, 6, 6), GREEN)]
    joined = apart[1] + apart[2]
    assert [g.tolist() for g in grouped(apart)] == [GROUND.tolist(), joined.tolist()]
    assert score_stacks(apart, [GROUND, joined])[0].iou == 1


def test_a_split_layer_is_forgiven_by_one_merge():
    reference = [GROUND, layer((0, 0, 6, 4))]
    split = [GROUND, layer((0, 0, 4, 4)), layer((3, 0, 6, 4))]
    scores = score_stacks(split, reference)
    assert len(scores) == 2 and scores[0].iou < 1 and scores[1].iou == 1 and scores[1].l1 == 0
    assert at_level(scores, 5) == scores[1]


def test_the_reference_may_be_merged_too():
    prediction = [GROUND, layer((0, 0, 6, 4))]
    reference = [GROUND, layer((0, 0, 4, 4)), layer((3, 0, 6, 4))]
    scores = score_stacks(prediction, reference)
    assert len(scores) == 2 and scores[1].iou == 1


def test_at_most_five_merges():
    many = [layer((0, 0, 8, 8), (30 * i, 0, 0)) for i in range(8)]
    few = [GROUND, layer((0, 0, 8, 8))]
    assert len(score_stacks(many, few)) == LEVELS
    assert [s.l1 for s in mean_scores([score_stacks(many, few)])][-1] == score_stacks(many, few)[-1].l1


def test_means_use_the_last_score_of_samples_that_stopped():
    stack = [GROUND, layer((0, 0, 4, 4))]
    split = [GROUND, layer((0, 0, 4, 2)), layer((0, 1, 4, 4))]
    means = mean_scores([score_stacks(stack, stack), score_stacks(split, stack)])
    assert len(means) == LEVELS and means[0].iou < 1
    assert all(level.iou == 1 and level.l1 == 0 for level in means[1:])


def test_stacks_of_one_layer_or_other_sizes_are_refused():
    with pytest.raises(ValueError, match="each side needs two or more"):
        score_stacks([GROUND], [GROUND, GROUND])
    small = np.zeros((4, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="one size"):
        score_stacks([GROUND, GROUND], [small, small])


def paths(rows: int, columns: int):
    """All monotone paths from the first cell to the last."""
    if rows == columns == 1:
        yield [(0, 0)]
        return
    for i, j in ((rows - 1, columns - 1), (rows - 1, columns), (rows, columns - 1)):
        if i >= 1 and j >= 1:
            yield from ([*path, (rows - 1, columns - 1)] for path in paths(i, j))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_alignment_is_the_cheapest_of_all_paths(rows, columns, seed):
    costs = np.random.default_rng(seed).integers(0, 4, (rows, columns)) / 4
    cost = lambda path: sum(costs[i, j] for i, j in path)
    found = align(costs)
    assert found in list(paths(rows, columns))
    assert cost(found) == min(map(cost, paths(rows, columns)))


def test_ties_go_diagonally_then_back_in_the_prediction():
    assert align(np.zeros((3, 3))) == [(0, 0), (1, 1), (2, 2)]
    assert align(np.zeros((3, 2))) == [(0, 0), (1, 0), (2, 1)]
    assert align(np.zeros((2, 3))) == [(0, 0), (0, 1), (1, 2)]


# A second implementation, in floats and written from the paper's text alone: recursion instead of tables, pixel sets
# instead of boxes.


def second_cost(p, g):
    p, g = p / 255.0, g / 255.0
    seen = [(y, x) for y, x in itertools.product(range(p.shape[0]), range(p.shape[1])) if g[y, x, 3] > 0]
    l1 = sum(sum(abs(p[y, x, c] - g[y, x, c]) for c in range(3)) / 3 for y, x in seen) / (len(seen) + 1e-8)
    low, high = np.minimum(p[..., 3], g[..., 3]).sum(), np.maximum(p[..., 3], g[..., 3]).sum()
    iou = low / high if high > 0 else 0.0
    return l1, iou, (l1 + 1 - iou) / 2


def second_over(top, bottom):
    ta, ba = top[..., 3:] / 255.0, bottom[..., 3:] / 255.0
    alpha = ta + ba * (1 - ta)
    colour = (top[..., :3] * ta + bottom[..., :3] * ba * (1 - ta)) / np.where(alpha > 0, alpha, 1)
    colour = np.where(ta == 0, bottom[..., :3], colour)
    return np.concatenate([colour, np.where(ta == 0, bottom[..., 3:] / 255.0, alpha) * 255], -1)


def second_groups(layers):
    left, groups = list(range(len(layers))), []
    while left:
        solid = {i: layers[i][..., 3] > 0 for i in left}
        front = [i for i in left if not any((solid[i] & solid[j]).any() for j in left if j > i)]
        groups.append(front)
        left = [i for i in left if i not in front]
    flat = []
    for members in reversed(groups):
        whole = layers[members[0]].astype(float)
        for i in members[1:]:
            whole = second_over(layers[i].astype(float), whole)
        flat.append(whole)
    return flat


def second_path(costs, i, j):
    """Cheapest path to (i, j) as (cost, path); ties by the protocol's order."""
    if (i, j) == (0, 0):
        return costs[0][0], [(0, 0)]
    before = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
    options = [second_path(costs, *cell) for cell in before if min(cell) >= 0]
    best = min(options, key=lambda option: round(option[0], 12))
    return best[0] + costs[i][j], [*best[1], (i, j)]


def second_scores(prediction, reference):
    sides, found = [second_groups(prediction), second_groups(reference)], []
    while True:
        table = [[second_cost(p, g) for g in sides[1]] for p in sides[0]]
        _, path = second_path([[c for *_, c in row] for row in table], len(sides[0]) - 1, len(sides[1]) - 1)
        found.append(tuple(np.mean([table[i][j][k] for i, j in path]) for k in range(3)))
        options = []
        for side, turned in ((0, path), (1, [(j, i) for i, j in path])):
            mine, other = sides[side], sides[1 - side]
            s = lambda x, ids, other=other: sum(1 - second_cost(x, other[j])[2] for j in ids)
            a = [[j for i, j in turned if i == k] for k in range(len(mine))]
            gains = []
            for i in range(len(mine) - 1 if len(mine) >= 3 else 0):
                m = second_over(mine[i + 1], mine[i])
                more = [s(m, a[i + 1])]
                if i + 2 < len(mine):
                    more += [s(mine[i + 2], a[i]), s(mine[i + 2], a[i + 1])]
                gains.append((s(m, a[i]) + max(more) - s(mine[i], a[i]) - s(mine[i + 1], a[i + 1]), i, m))
            options.append(max(gains, key=lambda g: g[0], default=(0.0, 0, None)))
        if max(o[0] for o in options) <= 1e-12 or len(found) == LEVELS:
            return found
        side = 0 if options[0][0] > options[1][0] else 1
        _, i, m = options[side]
        sides[side] = [*sides[side][:i], m, *sides[side][i + 2 :]]


@pytest.mark.parametrize("seed", range(12))
def test_it_equals_the_second_implementation_in_floats(seed):
    rng = np.random.default_rng(seed)

    def stack(count):
        layers = [layer((0, 0, 8, 8), tuple(rng.integers(0, 256, 3).tolist()))]
        for _ in range(count - 1):
            left, top = rng.integers(0, 5, 2).tolist()
            wide, high = rng.integers(2, 5, 2).tolist()
            alpha = int(rng.choice([90, 180, 255]))
            layers.append(layer((left, top, left + wide, top + high), tuple(rng.integers(0, 256, 3).tolist()), alpha))
        return layers

    prediction, reference = stack(int(rng.integers(2, 6))), stack(int(rng.integers(2, 6)))
    ours, theirs = score_stacks(prediction, reference), second_scores(prediction, reference)
    assert len(ours) == len(theirs)
    for mine, (l1, iou, cost) in zip(ours, theirs, strict=True):  # ours rounds to 8 bits at each merge
        assert (mine.l1, mine.iou, mine.cost) == pytest.approx((l1, iou, cost), abs=4e-3)
    assert (ours[0].l1, ours[0].iou) == pytest.approx(theirs[0][:2], abs=2e-3)
