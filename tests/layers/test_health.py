"""Health against stacks whose faults are known, and against a second implementation that goes pixel by pixel."""

import itertools

import numpy as np
import pytest

from qil_jax.evaluation.samples import flattened
from qil_jax.layers.health import EMPTY, FULL, SAME, Health, difference, health, health_rates, same_layers


def box(left: int, top: int, right: int, bottom: int, colour=(255, 0, 0), alpha: int = 255) -> np.ndarray:
    """A rectangle on a clear canvas of 40 pixels."""
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[top:bottom, left:right] = (*colour, alpha)
    return pixels


GROUND = box(0, 0, 40, 40, (0, 0, 255))


def test_a_good_stack_has_no_fault():
    found = health([GROUND, box(0, 0, 10, 10), box(20, 20, 30, 30)])
    assert found == Health(upper=2, empty=0, duplicates=0, full_canvas=0, overlap=0.0)


def test_faults_by_hand():
    # 0.1 % of 1600 pixels is 1.6: one pixel is empty, two are not.
    assert health([GROUND, box(0, 0, 1, 1), box(0, 0, 2, 1)]).empty == 1
    assert health([GROUND, box(0, 0, 20, 20, alpha=1)]).empty == 1  # 400 / 255 pixels: less than 1.6
    # 95 % of 40 rows is 38: a layer of 39 rows fills the canvas, one of 38 does not.
    assert health([GROUND, box(0, 0, 40, 39), box(0, 0, 40, 38)]).full_canvas == 1
    assert health([GROUND, box(0, 0, 40, 40, alpha=240)]).full_canvas == 0  # 94 %
    # 100 + 100 pixels, 50 of them in common.
    assert health([GROUND, box(0, 0, 10, 10), box(5, 0, 15, 10)]).overlap == 50 / 150
    assert health([GROUND, box(0, 0, 10, 10), box(5, 0, 15, 10, alpha=127)]).overlap == 0  # not half
    assert health([GROUND, box(0, 0, 10, 10), box(5, 0, 15, 10, alpha=128)]).overlap == 50 / 150
    assert health([GROUND]) == Health(upper=0, empty=0, duplicates=0, full_canvas=0, overlap=0.0)


def test_of_equal_layers_all_but_one_are_duplicates():
    clear, square = np.zeros_like(GROUND), box(3, 3, 13, 13)
    assert health([GROUND, square, square, square]).duplicates == 2
    assert health([GROUND, GROUND, square]).duplicates == 1
    assert health([GROUND, clear, clear]).duplicates == 0  # but empty
    assert health([clear, GROUND, clear, GROUND]).duplicates == 1
    composite = flattened([GROUND, square])
    assert health([composite, square, composite]).duplicates == 1


def test_a_duplicate_may_differ_a_little():
    # Premultiplied RGBA differs by d in three of four numbers: 0.75 d < 0.05 up to d = 17 / 255.
    colour = lambda d: box(0, 0, 10, 10, (100 + d,) * 3)
    assert difference(colour(0), colour(16)) == pytest.approx(0.75 * 16 / 255)
    assert health([GROUND, colour(0), colour(16)]).duplicates == 1
    assert health([GROUND, colour(0), colour(18)]).duplicates == 0
    # A column of ten pixels on either side of nine columns in common: red and alpha differ on 20 of 110.
    assert difference(box(0, 0, 10, 10), box(1, 0, 11, 10)) == pytest.approx(20 / 110 / 2)
    hidden = box(0, 0, 40, 40, (9, 9, 9), alpha=0)
    hidden[:10, :10] = (255, 0, 0, 255)
    assert difference(hidden, box(0, 0, 10, 10)) == 0  # colour under alpha 0 is not seen
    assert difference(np.zeros_like(GROUND), hidden * 0) == 0


def test_rates_are_shares_of_layers_and_the_mean_overlap():
    stacks = [
        Health(upper=3, empty=1, duplicates=0, full_canvas=2, overlap=0.5),
        Health(upper=1, empty=1, duplicates=1, full_canvas=0, overlap=0.0),
    ]
    rates = health_rates(stacks)
    assert (rates.empty, rates.duplicates, rates.full_canvas, rates.overlap) == (0.5, 0.25, 0.5, 0.25)
    assert health_rates([Health(upper=0, empty=0, duplicates=0, full_canvas=0, overlap=0.0)]).empty == 0


def second_health(layers):
    """Written again, from the definitions alone, a pixel at a time."""
    places = list(itertools.product(range(40), range(40)))
    seen = lambda layer, y, x: np.array([*layer[y, x, :3] / 255.0 * layer[y, x, 3] / 255.0, layer[y, x, 3] / 255.0])
    cover = [sum(int(layer[y, x, 3]) for y, x in places) / 255 / 1600 for layer in layers]
    copies = 0
    for i in range(1, len(layers)):
        alike = False
        for j in range(i):
            either = [(y, x) for y, x in places if layers[i][y, x, 3] or layers[j][y, x, 3]]
            apart = [np.abs(seen(layers[i], y, x) - seen(layers[j], y, x)).mean() for y, x in either]
            alike |= min(cover[i], cover[j]) >= EMPTY and np.mean(apart) < SAME
        copies += bool(alike)
    counts = [sum(layer[y, x, 3] / 255 > 0.5 for layer in layers[1:]) for y, x in places]
    covered = sum(count >= 1 for count in counts)
    return Health(
        upper=len(layers) - 1,
        empty=sum(c < EMPTY for c in cover[1:]),
        duplicates=copies,
        full_canvas=sum(c > FULL for c in cover[1:]),
        overlap=sum(count >= 2 for count in counts) / covered if covered else 0.0,
    )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.full
def test_it_equals_the_second_implementation(seed):
    rng = np.random.default_rng(seed)
    layers = [GROUND]
    for _ in range(4):
        left, top, wide, high = (*rng.integers(0, 20, 2), *rng.integers(0, 30, 2))
        colour, alpha = rng.integers(0, 256, 3), int(rng.choice([3, 120, 140, 255]))
        layers.append(box(left, top, left + wide, top + high, colour, alpha))
    layers += [layers[1 + seed % 3], np.full_like(GROUND, 200)]
    layers[-2] = np.where(layers[-2] > 9, layers[-2] - 9, layers[-2])
    assert health(layers) == second_health(layers)


def test_same_layers_are_found_as_by_comparing_all():
    rng = np.random.default_rng(7)
    for side in (1, 5, 16, 37, 64):
        base = rng.integers(0, 256, (4, side, side + 3, 4), np.uint8)
        base[2, side // 2 :, :, 3] = 0
        base[3, ..., 3] = 0
        near = np.clip(base + rng.integers(-9, 10, base.shape), 0, 255).astype(np.uint8)
        faded = (base * [1, 1, 1, 0.9]).astype(np.uint8)
        layers = dict(enumerate([*base, *near, *faded, *np.roll(base, 1, axis=2)]))
        every = [(difference(layers[i], layers[j]), i, j) for i in layers for j in layers if i < j]
        expected = [pair for pair in every if pair[0] < SAME]
        assert same_layers(layers) == expected and len(expected) > 4
