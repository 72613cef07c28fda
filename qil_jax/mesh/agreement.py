"""What several processes know, brought together."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped


def gathered(x: Shaped[np.ndarray, "*n"]) -> Shaped[np.ndarray, "p *n"]:
    """The arrays of all processes, of equal shapes, in the order of the processes; all must call this function."""
    if jax.process_count() == 1:
        return np.asarray(x)[None]
    return np.asarray(multihost_utils.process_allgather(x))
