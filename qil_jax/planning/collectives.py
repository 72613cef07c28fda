"""The collectives of a compiled program: kind, size, devices that take part, and how often each runs."""

import dataclasses
import re
from collections.abc import Iterator
from enum import StrEnum

import numpy as np

from qil_jax.planning.hlo import Computation, Instruction, Module
from qil_jax.planning.walk import executed


class CollectiveKind(StrEnum):
    """What a collective does."""

    ALL_GATHER = "all-gather"
    ALL_REDUCE = "all-reduce"
    REDUCE_SCATTER = "reduce-scatter"
    ALL_TO_ALL = "all-to-all"
    PERMUTE = "collective-permute"
    BROADCAST = "collective-broadcast"


Groups = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: what it does.
      bytes: size of the whole array on one device: the result of an all-gather, the operand of the others.
      groups: partitions that communicate with one another, by index in the mesh; of a permute the pairs.
      count: how often it runs.
    """

    kind: CollectiveKind
    bytes: int
    groups: Groups
    count: int

    @property
    def size(self) -> int:
        """Number of partitions of a group; of a permute 2."""
        return max(map(len, self.groups), default=1)

    @property
    def sent(self) -> float:
        """Bytes that a device sends each time if all sends are direct."""
        n = self.size
        match self.kind:
            case CollectiveKind.ALL_REDUCE:
                return 2 * self.bytes * (n - 1) / n
            case CollectiveKind.PERMUTE | CollectiveKind.BROADCAST:
                return float(self.bytes)
        return self.bytes * (n - 1) / n

    def axes(self, mesh: dict[str, int]) -> tuple[str, ...]:
        """The axes of the mesh along which the partitions of a group differ."""
        places = np.unravel_index(np.arange(int(np.prod(list(mesh.values())))), tuple(mesh.values()))
        found = []
        for axis, place in zip(mesh, places, strict=True):
            if any(len({int(place[device]) for device in group}) > 1 for group in self.groups):
                found.append(axis)
        return tuple(found)


def collectives(module: Module, partitions: int) -> list[Collective]:
    """All collectives of a program for `partitions` devices. An asynchronous one counts where it starts, once.

    Raises:
      ValueError: if a loop has no trip count, see `executed`.
    """
    found = []
    for computation, instruction, times in executed(module):
        for place, part in _within(module, computation, instruction):
            collective = _read(module, place, part, partitions, times)
            if collective is not None and collective.size > 1:
                found.append(collective)
    return found


def carried(computation: Computation, instruction: Instruction) -> bool:
    """Whether a fusion only carries an asynchronous collective on: it began in another computation."""
    return "chain_id=" in instruction.attributes and not any(
        part.target == "AsyncCollectiveStart" for part in computation.instructions.values()
    )


def kind_of(instruction: Instruction) -> CollectiveKind | None:
    """The kind of a collective, asynchronous or not; None for all other instructions and for the end of one."""
    name = instruction.opcode.removesuffix("-start")
    name = "all-to-all" if name == "ragged-all-to-all" else name
    return CollectiveKind(name) if name in tuple(CollectiveKind) else None


def _within(
    module: Module, computation: Computation, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """The instruction, or those of the fusion or asynchronous computation that it runs."""
    if instruction.opcode not in ("fusion", "async-start"):
        yield computation, instruction
        return
    for name in instruction.called:
        inside = module.computations[name]
        for part in inside.instructions.values():
            yield from _within(module, inside, part)


def _read(
    module: Module, computation: Computation, instruction: Instruction, partitions: int, times: int
) -> Collective | None:
    kind = kind_of(instruction)
    if kind is None or carried(computation, instruction):
        return None
    operands = [computation.instructions[name].types for name in instruction.operands]
    given = sum(kept.bytes for types in operands for kept in types)
    groups = _groups(instruction.attributes, partitions)
    size = max(map(len, groups), default=1)
    if kind is CollectiveKind.ALL_REDUCE and computation.name.startswith("all-reduce-scatter"):
        kind = CollectiveKind.REDUCE_SCATTER  # a fusion of TPUs: a sum of which each device keeps its part
    return Collective(
        kind=kind,
        bytes=given * size if kind is CollectiveKind.ALL_GATHER else given,
        groups=groups,
        count=times,
    )


def _groups(attributes: str, partitions: int) -> Groups:
    """The groups of partitions, in any of the four ways in which XLA writes them."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    if pairs:
        found = (tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)\}", pairs[1]))
        return tuple(pair for pair in found if pair[0] != pair[1])
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes)
    if listed:
        groups = tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1]))
        return groups or (tuple(range(partitions)),)
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? \{([^}]*)\}", attributes)
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        along = re.findall(r"'(\w+)'", named[3])
        grid = _iota(named[2] or f"[{partitions}]").reshape(tuple(sizes.values()))
        order = [i for i, name in enumerate(sizes) if name not in along] + [list(sizes).index(name) for name in along]
        width = int(np.prod([sizes[name] for name in along]))
        return tuple(tuple(map(int, row)) for row in grid.transpose(order).reshape(-1, width))
    tiled = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if tiled:
        rows = _iota(tiled[2]).reshape(tuple(map(int, tiled[1].split(","))))
        return tuple(tuple(map(int, row)) for row in rows)
    return (tuple(range(partitions)),)


def _iota(text: str) -> np.ndarray:
    """Numbers in the order of a text such as [2,4]T(1,0): counted in this shape, then transposed."""
    shape, order = re.search(r"\[([\d,]+)\]", text), re.search(r"T\(([\d,]+)", text)
    assert shape is not None
    sizes = tuple(map(int, shape[1].split(",")))
    numbers = np.arange(int(np.prod(sizes))).reshape(sizes)
    return (numbers.transpose(tuple(map(int, order[1].split(",")))) if order else numbers).reshape(-1)
