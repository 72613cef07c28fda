"""A stack is adjusted until it reproduces any image, and unchanged where it already does."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qil_jax.documents.fit import TOLERANCE, Piece, Raster, fit, flatten, piece_of, recolour

BOX = (3, 2, 12, 10)


def random_pieces(seed: int, count: int, channels: int) -> list[Piece]:
    random = np.random.default_rng(seed)
    pieces = []
    for i in range(count):
        left, top, height, width = random.integers(0, 9), random.integers(0, 9), *random.integers(1, 9, 2)
        alpha = random.choice([0, 1, 100, 254, 255], (height, width, 1)).astype(np.uint8)
        colour = random.integers(0, 256, (height, width, channels), np.uint8)
        pieces.append(Piece(colour=colour, alpha=alpha, left=int(left), top=int(top), name=str(i)))
    return pieces


def random_picture(seed: int, channels: int) -> Raster:
    random = np.random.default_rng(seed)
    shape = BOX[3] - BOX[1], BOX[2] - BOX[0]
    alpha = random.choice([0, 0.3, 0.99, 1], (*shape, 1)).astype(np.float32)
    return Raster(colour=random.random((*shape, channels), np.float32), alpha=alpha, box=BOX)


def largest_difference(a: Raster, b: Raster) -> float:
    return max(np.abs(a.colour * a.alpha - b.colour * b.alpha).max(), np.abs(a.alpha - b.alpha).max())


@given(st.integers(0, 999), st.integers(0, 8), st.sampled_from([1, 3, 4]))
def test_any_stack_is_bent_to_any_picture(seed, count, channels):
    pieces, wanted = random_pieces(seed, count, channels), random_picture(seed + 1, channels)
    fit(pieces, wanted, "rest")
    assert largest_difference(flatten(pieces, BOX, channels), wanted) <= TOLERANCE + 1e-6


@given(st.integers(0, 999), st.integers(1, 8))
def test_a_stack_that_fits_is_left_alone(seed, count):
    pieces = random_pieces(seed, count, 3)
    before = copy.deepcopy(pieces)
    result = fit(pieces, flatten(pieces, BOX, 3), "rest")
    assert (result.repaired, result.added, len(pieces)) == (0, 0, count)
    for a, b in zip(pieces, before, strict=True):
        np.testing.assert_array_equal(a.alpha, b.alpha)
        np.testing.assert_array_equal(a.colour, b.colour)


@pytest.mark.parametrize("factor", [0.0, 0.25, 0.9])
def test_lower_opacity_needs_no_repair(factor):
    pieces = random_pieces(5, 4, 3)
    whole = flatten(pieces, BOX, 3)
    wanted = Raster(colour=whole.colour, alpha=whole.alpha * np.float32(factor), box=BOX)
    result = fit(pieces, wanted, "rest")
    assert result.repaired < 0.02 and len(pieces) == 4


def test_nothing_outside_the_box_changes():
    pieces = random_pieces(3, 5, 3)
    around = (0, 0, 20, 20)
    before = flatten(pieces, around, 3)
    fit(pieces, random_picture(8, 3), "rest")
    after = flatten(pieces, around, 3)
    changed = np.abs(after.alpha - before.alpha)[..., 0] > 0
    changed[BOX[1] : BOX[3], BOX[0] : BOX[2]] = False
    assert not changed.any()


def test_recolouring_reaches_every_piece_inside_the_box_only():
    pieces = random_pieces(1, 3, 3)
    before = copy.deepcopy(pieces)
    recolour(pieces, (0, 0, 5, 20), lambda x: Raster(colour=1 - x.colour, alpha=x.alpha, box=x.box))
    for now, was in zip(pieces, before, strict=True):
        left = max(0, 5 - was.left)
        np.testing.assert_array_equal(now.colour[:, :left], 255 - was.colour[:, :left])
        np.testing.assert_array_equal(now.colour[:, left:], was.colour[:, left:])


def test_a_piece_is_cut_to_what_shows():
    alpha = np.zeros((4, 5, 1), np.float32)
    assert piece_of(Raster(colour=np.ones((4, 5, 3), np.float32), alpha=alpha, box=(2, 3, 7, 7)), "x") is None
    alpha[1, 2] = 0.5
    piece = piece_of(Raster(colour=np.ones((4, 5, 3), np.float32), alpha=alpha, box=(2, 3, 7, 7)), "x")
    assert piece is not None and piece.box == (4, 4, 5, 5) and piece.alpha.tolist() == [[[128]]]
