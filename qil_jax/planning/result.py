"""What is known of a compiled program: memory, FLOPs, traffic, and the time that these need at least."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from qil_jax.planning.chips import Coordinates, Topology
from qil_jax.planning.collectives import Collective, collectives
from qil_jax.planning.compiling import Compiled, Memory
from qil_jax.planning.hbm import hbm_bytes
from qil_jax.planning.hlo import parse
from qil_jax.planning.kernels import kernels
from qil_jax.planning.network import network_seconds, seconds
from qil_jax.planning.products import product_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """All collectives of one kind along the same axes of the mesh, of one program on one device.

    Attributes:
      kind: what they do.
      axes: axes of the mesh along which the devices of a group differ.
      size: number of devices of a group.
      count: how often such a collective runs.
      bytes: sum of the whole arrays: results of all-gathers, operands of the others.
      sent: bytes that the device sends.
      seconds: time on the links, without what else they carry.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    count: int
    bytes: int
    sent: int
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """The seconds that a program needs at least, if it reaches the peak rates.

    Attributes:
      compute: matrix products of a device over its peak FLOP/s.
      memory: bytes of main memory over their peak rate.
      network: collectives over the links.
    """

    compute: float
    memory: float
    network: float

    @property
    def bound(self) -> float:
        """Seconds if everything overlaps perfectly: the largest term."""
        return max(self.compute, self.memory, self.network)

    @property
    def in_turn(self) -> float:
        """Seconds if nothing overlaps: the sum."""
        return self.compute + self.memory + self.network

    @property
    def limit(self) -> str:
        """The name of the largest term."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A program compiled for a topology and not run.

    Attributes:
      topology: name of the slice.
      mesh: sizes of the mesh's axes above 1.
      memory: memory of the program on one device.
      available: bytes of main memory that a device has for programs.
      beside: bytes on one device of what stays there while the program runs, by name.
      minimum_flops: FLOPs of the step as the mathematics needs them, of all devices.
      device_flops: FLOPs of the products that a device computes, with padding and repetitions.
      kernel_flops: the part of `device_flops` in Pallas kernels, from their shapes.
      hbm: bytes that a device moves to and from main memory.
      traffic: collectives.
      roofline: time of the step; None if the program does not fit, or was compiled for its memory only.
      compiler_flops, compiler_bytes: the compiler's own count.
      unknown_kernels: names of Pallas kernels whose FLOPs are not known, which are missing above.
      compile_seconds: CPU seconds of the compilation.
    """

    topology: str
    mesh: dict[str, int]
    memory: Memory
    available: int
    beside: dict[str, int]
    minimum_flops: float
    device_flops: float = 0.0
    kernel_flops: float = 0.0
    hbm: int = 0
    traffic: tuple[Traffic, ...] = ()
    roofline: Roofline | None = None
    compiler_flops: float = 0.0
    compiler_bytes: float = 0.0
    unknown_kernels: tuple[str, ...] = ()
    compile_seconds: float = 0.0

    @property
    def resident(self) -> int:
        """Bytes of one device's memory that are in use at the program's peak."""
        return self.memory.peak + sum(self.beside.values())

    @property
    def fits(self) -> bool:
        """Whether program and what stays beside it fit into a device's memory."""
        return self.memory.fits and self.resident <= self.available

    @property
    def spare(self) -> float:
        """The share of a device's memory that stays free; negative if too little is there."""
        return 1 - self.resident / self.available

    @property
    def repeated(self) -> float:
        """FLOPs that all devices compute over the minimum."""
        devices = 1
        for size in self.mesh.values():
            devices *= size
        return self.device_flops * devices / self.minimum_flops

    def mfu(self, peak: float) -> float:
        """The share of the devices' peak FLOP/s that the bound allows for the minimum of FLOPs."""
        assert self.roofline is not None
        return self.minimum_flops / (self.devices * peak * self.roofline.bound)

    @property
    def devices(self) -> int:
        """Number of devices."""
        return Topology.parse(self.topology).devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What `analysed` must know beside the compiled program.

    Attributes:
      topology: slice.
      mesh: sizes of all axes of the mesh, in its order.
      places: coordinates of the device of each partition.
      minimum_flops: FLOPs of the step as the mathematics needs them.
      beside: bytes on one device of what stays there while the program runs, by name.
    """

    topology: Topology
    mesh: dict[str, int]
    places: Sequence[Coordinates]
    minimum_flops: float
    beside: dict[str, int]


def analysed(program: Compiled, subject: Subject, *, memory_only: bool = False) -> Result:
    """Read a compiled program.

    Args:
      program: outcome of the compilation.
      subject: what was compiled.
      memory_only: whether FLOPs and traffic are left out, because the program was compiled with little effort.

    Raises:
      ValueError: if a loop of the program has no trip count.
    """
    topology, chip = subject.topology, subject.topology.chip
    known: dict[str, Any] = {
        "topology": str(topology),
        "mesh": {axis: size for axis, size in subject.mesh.items() if size > 1},
        "memory": program.memory,
        "available": chip.memory,
        "beside": subject.beside,
        "minimum_flops": subject.minimum_flops,
        "compile_seconds": round(program.seconds, 1),
    }
    if not program.memory.fits or memory_only:
        return Result(**known)
    module = parse(program.text)
    found, opaque = collectives(module, topology.devices), kernels(module)
    in_kernels = sum(kernel.count * (kernel.flops or 0) for kernel in opaque)
    flops = product_flops(module) + in_kernels
    moved = hbm_bytes(module) + sum(kernel.count * kernel.repeated for kernel in opaque)
    return Result(
        **known,
        device_flops=flops,
        kernel_flops=in_kernels,
        hbm=moved,
        traffic=summed(found, subject),
        roofline=Roofline(
            compute=flops / chip.flops,
            memory=moved / chip.bandwidth,
            network=network_seconds(found, topology, subject.places),
        ),
        compiler_flops=program.flops,
        compiler_bytes=program.accessed,
        unknown_kernels=tuple(kernel.name for kernel in opaque if kernel.flops is None),
    )


def summed(found: Sequence[Collective], subject: Subject) -> tuple[Traffic, ...]:
    """Collectives by kind, axes and size of their groups, the longest first."""
    totals: dict[tuple[str, tuple[str, ...], int], Counter[str]] = {}
    for collective in found:
        key = (str(collective.kind), collective.axes(subject.mesh), collective.size)
        total, count = totals.setdefault(key, Counter()), collective.count
        total["count"] += count
        total["bytes"] += count * collective.bytes
        total["sent"] += round(count * collective.sent)
        total["seconds"] += count * seconds(collective, subject.topology, subject.places)  # type: ignore[assignment]
    made = [Traffic(kind=kind, axes=axes, size=size, **total) for (kind, axes, size), total in totals.items()]  # type: ignore[arg-type]
    return tuple(sorted(made, key=lambda traffic: -traffic.seconds))
