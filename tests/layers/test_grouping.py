"""Grouping and merging: the rule of LayerD by hand, and a composite that does not change (hypothesis)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_stacks import SIZE, box, stacks

from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite
from qil_jax.layers.grouping import cheapest_merges, front_to_back_groups, merge, overlap


def reference_groups(layers: list[BoxedLayer]) -> list[list[int]]:
    """The rule, literally, on whole canvases (LayerD, arXiv 2509.25134)."""
    masks = []
    for layer in layers:
        mask = np.zeros(SIZE[::-1], bool)
        mask[layer.window] = layer.pixels[..., 3] > 0
        masks.append(mask)
    remaining, groups = list(range(len(layers))), []
    while remaining:
        front = [i for i in remaining if not any(j > i and (masks[i] & masks[j]).any() for j in remaining)]
        groups.insert(0, front)
        remaining = [i for i in remaining if i not in front]
    return groups


def test_groups_by_hand():
    ground, left, right, on_left = box(0, 0, 7, 6), box(0, 0, 3, 6), box(4, 0, 7, 6), box(1, 1, 2, 2)
    assert front_to_back_groups([ground, left, right, on_left]) == [[0], [1], [2, 3]]
    assert front_to_back_groups([right, left]) == [[0, 1]]
    assert front_to_back_groups([ground, ground, ground]) == [[0], [1], [2]]
    clear = box(0, 0, 7, 6, alpha=0)
    assert front_to_back_groups([ground, clear]) == [[0, 1]]
    assert front_to_back_groups([]) == []


def test_boxes_that_meet_need_not_overlap():
    a, b = box(0, 0, 4, 4), box(2, 2, 6, 6)
    assert overlap(a, b)
    a.pixels[2:, 2:, 3] = 0
    assert not overlap(a, b) and front_to_back_groups([a, b]) == [[0, 1]]


@given(stacks())
def test_groups_follow_the_rule(layers):
    assert front_to_back_groups(layers) == reference_groups(layers)


@given(stacks())
def test_grouping_changes_no_pixel_of_the_composite(layers):
    merged = merge(layers, front_to_back_groups(layers), SIZE)
    np.testing.assert_allclose(composite(merged, SIZE), composite(layers, SIZE), atol=1e-5)


@settings(max_examples=300)
@given(stacks(most=40), st.integers(1, 8))
@pytest.mark.full
def test_merging_neighbours_keeps_the_composite(layers, count):
    groups = cheapest_merges(np.array([layer.pixels[..., 3].mean() for layer in layers]), count)
    assert len(groups) == min(count, len(layers)) and [i for group in groups for i in group] == list(range(len(layers)))
    merged = merge(layers, groups, SIZE)
    assert np.abs(composite(merged, SIZE) - composite(layers, SIZE)).max() <= 1 / 255


def test_errors_of_rounding_do_not_add_up():
    """Forty pairs of faint layers, each pair merged: every pair rounded on its own would drift by several 255ths."""
    layers = [box(0, 0, *SIZE, value=255), *(box(0, 0, *SIZE, alpha=1 + i % 2, value=i * 3) for i in range(80))]
    groups = [[0], *([i, i + 1] for i in range(1, 80, 2))]
    merged = merge(layers, groups, SIZE)
    assert len(merged) == 41
    assert np.abs(composite(merged, SIZE) - composite(layers, SIZE)).max() <= 1 / 255


def test_a_merge_of_glass_stays_glass():
    glass = [box(0, 0, *SIZE, value=200), box(1, 1, 4, 4, alpha=100, value=20), box(2, 2, 5, 5, alpha=100, value=250)]
    merged = merge(glass, [[0], [1, 2]], SIZE)
    assert merged[1].pixels[1, 1].tolist()[3] == pytest.approx(255 * (1 - (155 / 255) ** 2), abs=1)
    assert merged[1].name == "1,1 + 2,2"


def test_the_least_visible_is_merged_first():
    assert cheapest_merges(np.array([100.0, 5, 50, 1]), 3) == [[0], [1], [2, 3]]
    assert cheapest_merges(np.array([100.0, 5, 50, 1]), 2) == [[0, 1], [2, 3]]
    assert cheapest_merges(np.array([3.0]), 1) == [[0]]
