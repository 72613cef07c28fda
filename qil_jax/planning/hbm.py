"""Bytes that a compiled program moves to and from a device's main memory, read from its instructions.

An instruction of the entry or of a loop's body reads its operands and writes its results as often as it runs. What
lies on the chip costs nothing; a fusion that slices an operand reads the slice, one that updates a buffer in place
writes the update, and an asynchronous collective counts where it starts. A Pallas kernel may read an operand
repeatedly, which `kernels` adds.
"""

from collections.abc import Iterable

from qil_jax.planning.collectives import carried, kind_of
from qil_jax.planning.hlo import ArrayType, Computation, Instruction, Module
from qil_jax.planning.walk import executed

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}
FREE |= {"partition-id", "replica-id", "opt-barrier", "add-dependency", "domain"}
SLICES = ("dynamic-slice", "slice", "gather")
ASYNC = ("AsyncCollectiveStart", "AsyncCollectiveDone")


def hbm_bytes(module: Module) -> int:
    """Bytes read from and written to main memory by one run of a program on one device."""
    return sum(times * instruction_bytes(module, c, i) for c, i, times in executed(module))


def instruction_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Bytes that one run of an instruction reads and writes."""
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith(("-done", "-update")):
        return 0
    operands = [computation.instructions[name] for name in instruction.operands]
    given = [kept for operand in operands for kept in operand.types]
    if opcode == "fusion":
        return _fusion(module, module.computations[instruction.called[0]], operands, instruction.types)
    if opcode == "copy-start":
        return _in_main(given) + _in_main(instruction.types[:1])
    if opcode == "slice-start":
        return _sliced(given[0], instruction.types[1])
    if opcode in SLICES:
        return _sliced(given[0], instruction.types[0])
    if opcode == "dynamic-update-slice":
        return 2 * _in_main(given[1:2])
    if opcode.endswith("-start") and len(instruction.types) >= 2 * len(given):  # operands, then results
        return _in_main(given) + _in_main(instruction.types[len(given) : 2 * len(given)])
    return _in_main(given) + _in_main(instruction.types)


def _in_main(types: Iterable[ArrayType]) -> int:
    return sum(kept.bytes for kept in types if kept.memory == 0)


def _sliced(source: ArrayType, result: ArrayType) -> int:
    return result.bytes * ((source.memory == 0) + (result.memory == 0))


def _fusion(module: Module, inside: Computation, operands: list[Instruction], results: tuple[ArrayType, ...]) -> int:
    root = inside.root
    if root.target == ASYNC[0]:  # its results are the collective's operands, then its results
        count = sum(len(part.operands) for part in inside.instructions.values() if kind_of(part))
        return _in_main(results[: 2 * count])
    total = 0
    for number, elements in _wanted(module, inside, root.types[0].size).items():
        for kept in operands[number].types:
            total += min(elements, kept.size) * kept.bytes // max(kept.size, 1) if kept.memory == 0 else 0
    made = [inside.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(made) == len(results):
        total += sum(_written(inside, e, r) for e, r in zip(made, results, strict=True) if r.memory == 0)
    return total


def _wanted(module: Module, inside: Computation, of_root: int) -> dict[int, int]:
    """The number of elements of each parameter of a fusion that `of_root` elements of its result need."""
    wanted = dict.fromkeys(inside.instructions, 0)
    for name in [*inside.root.operands] if inside.root.opcode == "tuple" else [inside.root.name]:
        element = inside.instructions[name]
        if element.opcode != "parameter":
            wanted[name] = of_root if inside.root.opcode != "tuple" else element.types[0].size
    for part in reversed(inside.instructions.values()):
        count = wanted[part.name]
        leaf = part.opcode in ("tuple", "parameter", "constant", "iota")
        if not count or leaf or part.target in ASYNC or carried(inside, part):
            continue
        nested = _wanted(module, module.computations[part.called[0]], count) if part.opcode == "fusion" else {}
        for place, name in enumerate(part.operands):
            size = sum(kept.size for kept in inside.instructions[name].types)
            if part.opcode == "fusion":
                more = nested.get(place, 0)
            elif part.opcode in SLICES and place == 0:
                more = part.types[0].size
            elif part.opcode == "dynamic-update-slice" and place == 0:
                more = 0
            else:
                more = count if size == part.types[0].size else size
            wanted[name] = min(size, wanted[name] + more)
    return {number: wanted[parameter.name] for number, parameter in inside.parameters.items()}


def _written(inside: Computation, element: Instruction, result: ArrayType) -> int:
    """Bytes of one result of a fusion that the fusion writes."""
    while element.opcode == "bitcast" and element.operands[0] in inside.instructions:
        element = inside.instructions[element.operands[0]]
    if element.opcode == "parameter" or element.target in ASYNC or carried(inside, element):
        return 0
    if element.opcode == "dynamic-update-slice":
        return sum(kept.bytes for kept in inside.instructions[element.operands[1]].types)
    return result.bytes
