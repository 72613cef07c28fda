"""Devices that are not there, for which programs are compiled."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from qil_jax.errors import QilError
from qil_jax.extras import require
from qil_jax.planning.chips import Coordinates, Topology

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Set before JAX is imported. There is no TPU that could be asked for its kind and its hosts, which the compiler's
library wants to know even though a topology is given; and another process may hold the library."""


def prepare_environment() -> None:
    """Set the variables under which JAX compiles for absent devices. To be called before JAX is imported."""
    os.environ.update(ENVIRONMENT)


def require_compiler(topology: Topology) -> None:
    """Check that the compiler of the topology's devices is installed.

    Raises:
      QilError: if it is not; the message says how to install it.
    """
    if topology.chip.switched:
        require(str(topology), "jax_cuda12_plugin")
    else:
        require(str(topology), "libtpu")


@cache
def compile_only_devices(topology: Topology) -> tuple[Any, ...]:
    """The devices of a topology. They are compared by identity, so a process describes a topology once.

    Raises:
      QilError: if the compiler is not installed or does not know the topology.
    """
    require_compiler(topology)
    from jax.experimental import topologies

    single = {"chips_per_host_bounds": (1, 1, 1)} if topology.devices == 1 else {}
    try:
        if topology.chip.switched:
            target = (Path(__file__).parent / f"{topology.chip.name}.txtpb").read_text(encoding="utf-8")
            described = topologies.get_topology_desc(
                topology.chip.name,
                "cuda",
                topology=f"1x{topology.devices}x1",  # slices, hosts, devices
                target_config=target,
            )
            return tuple(described.devices)
        return tuple(topologies.get_topology_desc(str(topology), "tpu", **single).devices)
    except RuntimeError as error:
        raise QilError(f"the compiler does not know the topology {topology}: {str(error).splitlines()[0]}") from error


def places(devices: Sequence[Any], topology: Topology) -> list[Coordinates]:
    """The coordinates of devices in their slice; of devices behind a switch their numbers."""
    if topology.chip.switched:
        return [(device.id,) for device in devices]
    return [tuple(device.coords[: len(topology.shape)]) for device in devices]
