"""The Frechet distance against values worked out by hand, and against the formula by scipy's matrix root."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from qil_jax.evaluation.frechet import frechet_distance, mean_frechet_distance


def test_one_feature_by_hand():
    # Means 1 and 4, deviations sqrt(2) and 2 sqrt(2): 3^2 + (sqrt(2))^2 = 11.
    assert frechet_distance(np.array([[0.0], [2.0]]), np.array([[2.0], [6.0]])) == pytest.approx(9 + 2)


def test_equal_sets_are_0_apart_and_shifted_ones_by_the_square_of_the_shift():
    features = np.random.default_rng(0).standard_normal((30, 6))
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + 2) == pytest.approx(6 * 4)
    assert frechet_distance(features[:2], features[:2] + 2) == pytest.approx(6 * 4)  # singular covariances


@pytest.mark.parametrize("seed", range(3))
def test_it_equals_scipys_matrix_root(seed):
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((40, 8)) @ rng.standard_normal((8, 8))
    second = rng.standard_normal((50, 8)) @ rng.standard_normal((8, 8)) + 1
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = np.real(sqrtm(covariances[0] @ covariances[1]))
    shift = np.square(first.mean(0) - second.mean(0)).sum()
    expected = shift + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)
    groups = np.stack([first, first * 2], 1), np.stack([second[:40], second[:40]], 1)
    each = [frechet_distance(first, second[:40]), frechet_distance(first * 2, second[:40])]
    assert mean_frechet_distance(*groups) == pytest.approx(np.mean(each))


def test_one_feature_vector_has_no_covariance():
    with pytest.raises(ValueError, match="1 and 3 features: a covariance needs two"):
        frechet_distance(np.zeros((1, 2)), np.zeros((3, 2)))
