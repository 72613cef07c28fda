"""Optimised HLO text as computations and instructions: what a compiled program does, as XLA prints it."""

import dataclasses
import functools
import math
import re

BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "token": 0, "opaque": 0}
"""Bits of an element whose name does not end in them."""
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_START = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COMMENT = re.compile(r"/\*index=\d+\*/")
_MEMORY = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayType:
    """The type of an array, with the memory in which it lies.

    Attributes:
      dtype: element type as XLA writes it, such as bf16.
      shape: sizes of the dimensions.
      memory: number of the memory space; 0 is the device's main memory (HBM), others are on the chip.
    """

    dtype: str
    shape: tuple[int, ...]
    memory: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Number of bytes without the padding of tiles."""
        digits = re.search(r"\d+", self.dtype)
        bits = BITS.get(self.dtype) if self.dtype in BITS else int(digits[0]) if digits else 0
        return (self.size * (bits or 0) + 7) // 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
      name: name of its result.
      opcode: operation, such as all-gather or fusion.
      types: types of the result's arrays; several if it is a tuple.
      operands: names of the operands; for a parameter or constant the text in parentheses.
      attributes: the text after the operands.
      is_root: whether its result is the computation's.
    """

    name: str
    opcode: str
    types: tuple[ArrayType, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that the instruction runs, a loop's body among them."""
        found = [
            *re.findall(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)", self.attributes)
        ]
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        return (*found, *(_NAME.findall(branches[1]) if branches else ()))

    @property
    def body(self) -> str | None:
        """Name of a loop's body; None for other instructions."""
        found = re.search(r"body=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    @property
    def trip_count(self) -> int | None:
        """Number of iterations of a loop as far as the compiler knows it."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self.attributes)
        return int(found[1]) if found else None

    @property
    def target(self) -> str:
        """The target of a custom call; empty for other instructions."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computation:
    """A computation of a module.

    Attributes:
      name: its name.
      instructions: its instructions by name, in order.
    """

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(i for i in self.instructions.values() if i.is_root)

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """The parameters by their number."""
        found = (i for i in self.instructions.values() if i.opcode == "parameter")
        return {int(i.operands[0]): i for i in found}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each result."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                if operand in found:
                    found[operand].append(instruction)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """A compiled program.

    Attributes:
      computations: all computations by name.
      entry: name of the one that runs first.
    """

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Parse the text of `jax.stages.Compiled.as_text()`.

    Raises:
      ValueError: if the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, name, statements = "", "", list[str]()
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, statements = header[2], []
            entry = name if header[1] else entry
        elif line == "}" and name:
            parsed = (_instruction(statement) for statement in statements)
            computations[name] = Computation(name=name, instructions={i.name: i for i in parsed})
            name = ""
        elif name and _START.match(line):
            statements.append(line)
        elif name and statements:
            statements[-1] += line  # a Pallas call spans several lines
    if not entry:
        raise ValueError("the text has no entry computation")
    return Module(computations=computations, entry=entry)


def array_types(text: str) -> tuple[ArrayType, ...]:
    """The arrays of a type as XLA writes it."""
    found = []
    for dtype, shape, layout in _ARRAY.findall(text):
        memory = _MEMORY.search(layout)
        sizes = tuple(int(re.sub(r"\D", "", size)) for size in shape.split(",") if size)
        found.append(ArrayType(dtype=dtype, shape=sizes, memory=int(memory[1]) if memory else 0))
    return tuple(found)


def _instruction(line: str) -> Instruction:
    line = _COMMENT.sub("", line)
    start = _START.match(line)
    assert start is not None
    rest = line[start.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opened = rest.index("(")
    closed = _closing(rest, opened)
    opcode, inside = rest[:opened], rest[opened + 1 : closed]
    plain = opcode in ("parameter", "constant")
    return Instruction(
        name=start[2],
        opcode=opcode,
        types=array_types(kind),
        operands=(inside,) if plain else tuple(_NAME.findall(inside)),
        attributes=rest[closed + 1 :],
        is_root=bool(start[1]),
    )


def _closing(text: str, opened: int) -> int:
    """The index of the parenthesis that closes the one at `opened`."""
    depth = 0
    for i in range(opened, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses: {text[opened : opened + 80]}")
