"""Device meshes from a specification such as "data=2,tensor=4"."""

import dataclasses
import math
import re
from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from qil_jax.accelerators import find_devices
from qil_jax.errors import cut
from qil_jax.mesh.compat import auto_mesh
from qil_jax.mesh.rules import MeshAxis, MeshError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshShape:
    """The number of devices along each mesh axis.

    Attributes:
      cfg: number of devices over which the conditional and the unconditional pass of guidance are split; 1 or 2.
      data: number of shards of the samples.
      fsdp: number of shards of the samples and of the parameters' residual width.
      context: number of shards of a sequence's tokens and, by Weights.SPLIT, of the parameters' residual width.
      tensor: number of shards of the attention heads, of the feed-forward width, and of the residual stream's tokens.
    """

    cfg: int = 1
    data: int = 1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """Read "data=2,tensor=4"; axes that are not named have size 1.

        Raises:
          MeshError: if an axis is unknown or repeated, or a size is not a positive integer.
        """
        sizes: dict[str, int] = {}
        problems = []
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, _, size = part.partition("=")
            if name not in tuple(MeshAxis):
                problems.append(f"'{cut(name)}' is no mesh axis: use {', '.join(MeshAxis)}")
            elif name in sizes:
                problems.append(f"'{name}' is given twice")
            elif not re.fullmatch(r"0*[1-9]\d{0,5}", size, re.ASCII):
                problems.append(f"'{cut(part)}': the size must be a positive integer, as in '{name}=2'")
            else:
                sizes[name] = int(size)
        if problems:
            raise MeshError(problems)
        return cls(**sizes)

    @property
    def devices(self) -> int:
        """The number of devices of the mesh."""
        return math.prod(dataclasses.astuple(self))


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with all five axes, which lie along the lines of a TPU's torus.

    Args:
      shape: number of devices along each axis.
      devices: devices of the mesh; None: all available devices.

    Raises:
      MeshError: if the sizes do not multiply to the number of devices, or guidance has more parts than passes.
      QilError: if jax finds no devices.
    """
    devices = find_devices() if devices is None else devices
    if shape.cfg > 2:
        raise MeshError([f"cfg={shape.cfg}: guidance has two passes, so cfg must be 1 or 2"])
    if shape.devices != len(devices):
        sizes = " x ".join(f"{name}={size}" for name, size in dataclasses.asdict(shape).items())
        raise MeshError([f"{sizes} makes {shape.devices} devices, but {len(devices)} are given"])
    return auto_mesh(devices, {axis.value: getattr(shape, axis.value) for axis in MeshAxis})


def abstract_mesh(shape: MeshShape) -> AbstractMesh:
    """A mesh of this shape without devices, by which arrays of a larger machine can be split on paper."""
    sizes = tuple(getattr(shape, axis) for axis in MeshAxis)
    return AbstractMesh(sizes, tuple(MeshAxis), axis_types=(AxisType.Auto,) * len(sizes))


def single_device_mesh() -> Mesh:
    """A mesh of the first device alone."""
    return make_mesh(MeshShape(), find_devices()[:1])
