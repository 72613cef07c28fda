"""FLOPs of the matrix products of a compiled program on one device, read from its instructions."""

import re
from collections.abc import Iterator

from qil_jax.planning.hlo import ArrayType, Computation, Instruction, Module
from qil_jax.planning.walk import executed


def product_flops(module: Module) -> int:
    """FLOPs of all products (a multiplication and an addition each), with the trip counts of loops.

    TPUs have products as convolutions. Pallas kernels are opaque and not counted, see `kernels`.
    """
    total = 0
    for computation, instruction, times in executed(module):
        total += times * sum(_flops(c, i) for c, i in _inside(module, computation, instruction))
    return total


def _inside(
    module: Module, computation: Computation, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    if instruction.opcode != "fusion":
        yield computation, instruction
        return
    for name in instruction.called:
        inside = module.computations[name]
        for part in inside.instructions.values():
            yield from _inside(module, inside, part)


def _flops(computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    left, right = (computation.instructions[name].types[0] for name in instruction.operands[:2])
    result = instruction.types[0]
    if instruction.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        summed = [left.shape[int(axis)] for axis in found[1].split(",") if axis] if found else []
        return 2 * result.size * _product(summed)
    return _convolution(instruction.attributes, left, right, result)


def _convolution(attributes: str, left: ArrayType, right: ArrayType, result: ArrayType) -> int:
    """FLOPs of a convolution: of each window only the taps that meet an element of the operand."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    assert labels is not None
    window = _window(attributes)
    total = 2 * right.shape[labels[2].index("i")] * result.shape[labels[3].index("b")]
    total *= result.shape[labels[3].index("f")]
    spatial = [label for label in labels[3] if label.isdigit()]
    for place, label in enumerate(sorted(spatial)):
        total *= _taps(
            given=left.shape[labels[1].index(label)],
            taken=right.shape[labels[2].index(label)],
            made=result.shape[labels[3].index(label)],
            window={name: values[place] for name, values in window.items()},
        )
    return total


def _window(attributes: str) -> dict[str, list[str]]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    entries = [entry.split("=") for entry in found[1].split()] if found else []
    return {name: re.split(r"x", values) for name, values in entries}


def _taps(*, given: int, taken: int, made: int, window: dict[str, str]) -> int:
    """The number of pairs of an output position and a tap that lie within the operand, along one dimension."""
    stride, low = int(window.get("stride", 1)), int(window.get("pad", "0_0").split("_")[0])
    spread, apart = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
    if low == 0 and stride == spread == apart == 1 and made + taken - 1 <= given:
        return made * taken
    count, last = 0, (given - 1) * spread
    for tap in range(taken):
        if spread == 1:  # positions o with 0 <= o * stride + tap * apart - low <= last
            first = max(0, -(-(low - tap * apart) // stride))
            count += max(0, min(made - 1, (last + low - tap * apart) // stride) - first + 1)
        else:
            places = (o * stride + tap * apart - low for o in range(made))
            count += sum(0 <= place <= last and place % spread == 0 for place in places)
    return count


def _product(sizes: list[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
