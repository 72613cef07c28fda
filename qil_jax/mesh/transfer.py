"""Movement of arrays between hosts and a mesh whose devices may belong to several processes."""

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import Shaped


def put(x: Shaped[np.ndarray, "*n"], sharding: Sharding) -> Shaped[Array, "*n"]:
    """Send an array, of which every process has a copy, to the devices. The devices never share the host's memory."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: np.array(x[index]))


def fetch(x: Shaped[Array, "*n"]) -> Shaped[np.ndarray, "*n"]:
    """A copy of a whole array on every process's host; a collective call if other processes hold a part of it."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.array(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
