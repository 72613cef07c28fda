"""Calls that depend on the version of jax."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh
from jaxtyping import Shaped


def auto_mesh(devices: Sequence[jax.Device], shape: dict[str, int]) -> Mesh:
    """A mesh whose axes are all Auto: the compiler propagates shardings between our constraints."""
    return Mesh(device_grid(devices, tuple(shape.values())), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def device_grid(devices: Sequence[Any], sizes: tuple[int, ...]) -> Shaped[np.ndarray, "..."]:
    """The devices as a grid.

    On TPUs the axes lie along lines of the torus, the last one along the shortest paths. Elsewhere, and for a set of
    devices that is no torus, devices keep their order.
    """
    if devices[0].platform == "tpu" and len(devices) > 1:
        try:
            grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        except (AssertionError, ValueError):  # part of a slice, or a shape that no torus has
            pass
        else:
            return by_process(grid)
    return np.asarray(devices).reshape(sizes)


def by_process(grid: Shaped[np.ndarray, "*n"], axis: int = 2) -> Shaped[np.ndarray, "*n"]:
    """A grid whose groups along an axis, by default fsdp, are in the order of their processes.

    The groups stay the same: only their numbers change, so that neighbouring rows of a batch are read by one process.
    """
    groups = np.moveaxis(grid, axis, 0)
    first = np.vectorize(lambda device: device.process_index)(groups).reshape(len(groups), -1).min(axis=1)
    return np.moveaxis(groups[np.argsort(first, kind="stable")], 0, axis)
