"""The Frechet distance between two sets of features (Heusel et al., arXiv 1706.08500)."""

import numpy as np
from jaxtyping import Float

from qil_jax.errors import QilError


def frechet_distance(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    """Squared Frechet distance between the normal distributions fitted to two sets of features.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), covariances over n - 1. The matrix root is taken of this
    symmetric form, by eigenvalues, so that it is real even for the singular covariances of few features.

    Raises:
      QilError: if a set has fewer than two rows.
    """
    if min(len(first), len(second)) < 2:
        raise QilError(f"{len(first)} and {len(second)} features: a covariance needs two or more on each side")
    means = [np.mean(x, axis=0, dtype=np.float64) for x in (first, second)]
    covariances = [np.atleast_2d(np.cov(x.astype(np.float64), rowvar=False)) for x in (first, second)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)).sum()
    distance = np.sum(np.square(means[0] - means[1])) + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross
    return max(0.0, float(distance))  # rounding may leave equal sets below 0


def mean_frechet_distance(first: Float[np.ndarray, "n g d"], second: Float[np.ndarray, "m g d"]) -> float:
    """The mean Frechet distance over g groups of features, such as one per background."""
    return float(np.mean([frechet_distance(first[:, g], second[:, g]) for g in range(first.shape[1])]))
