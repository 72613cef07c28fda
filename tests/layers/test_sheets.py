"""Contact sheets."""

import numpy as np

from qil_jax.layers.sheets import GAP, grid


def test_rows_may_be_shorter_than_others_or_empty():
    """A row of a batch without samples has no pictures."""
    red = np.zeros((6, 8, 4), np.uint8)
    red[..., [0, 3]] = 255
    sheet = np.asarray(grid([[red, red], [], [red]]))
    assert sheet.shape == (2 * 6 + 4 * GAP, 2 * 8 + 3 * GAP, 3)
    is_red = (sheet == (255, 0, 0)).all(-1)
    assert is_red[GAP : GAP + 6].sum() == 2 * 48 and is_red[-GAP - 6 : -GAP].sum() == 48 and is_red.sum() == 3 * 48
