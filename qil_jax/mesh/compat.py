"""Calls that depend on the version of jax."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh


def auto_mesh(devices: Sequence[jax.Device], shape: dict[str, int]) -> Mesh:
    """A mesh whose axes are all Auto: the compiler propagates shardings between our constraints."""
    grid = np.asarray(devices).reshape(tuple(shape.values()))
    return Mesh(grid, tuple(shape), axis_types=(AxisType.Auto,) * len(shape))
