"""The accelerators for which programs are planned: peak rates, memory, links, and the names of their topologies."""

import dataclasses
import re

from qil_jax.errors import QilError

GIB = 1 << 30
Coordinates = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A kind of device. Rates are the vendors' peaks.

    Attributes:
      name: prefix of the names of its topologies.
      flops: bf16 FLOP/s.
      bandwidth: bytes a second of main memory.
      memory: bytes of main memory that a program may use; of TPUs what the compiler's message of too little names.
      link: bytes a second of one link to a neighbour, in one direction.
      wraps: a dimension of a topology that is a multiple of this closes to a ring; 0: none does.
      switched: whether any device reaches any other over one link of this rate, as through NVSwitch.
    """

    name: str
    flops: float
    bandwidth: float
    memory: int
    link: float
    wraps: int = 0
    switched: bool = False


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(name="v5e", flops=197e12, bandwidth=819e9, memory=int(15.75 * GIB), link=45e9, wraps=16),
        Chip(name="v5p", flops=459e12, bandwidth=2765e9, memory=int(95.74 * GIB), link=90e9, wraps=4),
        Chip(name="v6e", flops=918e12, bandwidth=1640e9, memory=int(31.25 * GIB), link=90e9, wraps=16),
        Chip(name="h100", flops=989e12, bandwidth=3350e9, memory=80_000_000_000, link=450e9, switched=True),
    )
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """A slice of chips, such as v5e:2x4.

    Attributes:
      chip: kind of its devices.
      shape: number of devices along each dimension.
    """

    chip: Chip
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """Read a name like v5p:4x4x4, or h100:8.

        Raises:
          QilError: if there is no such chip, or the sizes are none of its topologies.
        """
        name, _, sizes = text.partition(":")
        chip, shape = CHIPS.get(name), tuple(int(size) for size in re.findall(r"\d+", sizes))
        written = bool(re.fullmatch(r"\d+(x\d+)*", sizes)) and 0 not in shape
        if chip is None or not written or problem(chip, shape):
            why = problem(chip, shape) if chip is not None and written else "write it as one of these"
            raise QilError(f"topology '{text}' is not known ({why}): {KNOWN}")
        return cls(chip=chip, shape=shape)

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def devices(self) -> int:
        """Number of devices."""
        total = 1
        for size in self.shape:
            total *= size
        return total

    def wrapped(self, dimension: int) -> bool:
        """Whether the dimension closes to a ring."""
        size, wraps = self.shape[dimension], self.chip.wraps
        return wraps > 0 and size >= wraps and size % wraps == 0


KNOWN = (
    "v5e and v6e have 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 and 16x16, v5p has 1x1x1 and XxYxZ of even sizes such as "
    "2x2x1, 2x2x2, 4x4x4 and 4x4x8, and h100 a number such as h100:8"
)
FLAT = {(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)}


def problem(chip: Chip, shape: tuple[int, ...]) -> str:
    """Why a chip has no topology of this shape; empty if it has."""
    if chip.switched:
        return "" if len(shape) == 1 else "one number of devices"
    if chip.name == "v5p":
        solid = len(shape) == 3 and (shape == (1, 1, 1) or all(n % 2 == 0 for n in shape[:2]))
        return "" if solid else "three sizes, the first two even"
    return "" if shape in FLAT else f"{'x'.join(map(str, shape))} is none of its shapes"
