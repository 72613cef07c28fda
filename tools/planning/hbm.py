"""Bytes that a compiled program moves to and from a device's main memory, read from its instructions.

An instruction of the entry or of a loop's body reads its operands and writes its results as often as it runs. What
lies on the chip costs nothing; a fusion that slices an operand reads the slice, one that updates a buffer in place
writes the update, and an asynchronous collective counts where it starts. A Pallas kernel may read an operand
repeatedly, which `kernels` adds.
"""

from collections.abc import Iterable

from tools.planning.collectives import carried, kind_of
from tools.planning.hlo import ArrayType, Computation, Instruction, Module
from tools.planning.walk import executed

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
    for number, parameter in inside.parameters.items():
        given = operands[number].types
        if all(kept.memory == 0 for kept in given):
            total += min(_read(module, inside, parameter.name), sum(kept.bytes for kept in given))
    elements = [inside.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(elements) == len(results):
        total += sum(_written(inside, e, r) for e, r in zip(elements, results, strict=True) if r.memory == 0)
    return total


def _read(module: Module, inside: Computation, name: str) -> int:
    """Bytes of a value of a fusion that the fusion reads from outside."""
    whole = sum(kept.bytes for kept in inside.instructions[name].types)
    total = 0
    for user in inside.users[name]:
        if user.opcode == "tuple" or user.target in ASYNC or carried(inside, user):
            continue
        if user.opcode == "bitcast":
            total += _read(module, inside, user.name)
        elif user.opcode in SLICES and user.operands[0] == name:
            total += sum(kept.bytes for kept in user.types)
        elif user.opcode == "fusion":
            nested = module.computations[user.called[0]]
            places = [i for i, operand in enumerate(user.operands) if operand == name]
            total += sum(_read(module, nested, nested.parameters[place].name) for place in places)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            return whole
    return min(whole, total)


def _written(inside: Computation, element: Instruction, result: ArrayType) -> int:
    """Bytes of one result of a fusion that the fusion writes."""
    while element.opcode == "bitcast" and element.operands[0] in inside.instructions:
        element = inside.instructions[element.operands[0]]
    if element.opcode == "parameter" or element.target in ASYNC or carried(inside, element):
        return 0
    if element.opcode == "dynamic-update-slice":
        return sum(kept.bytes for kept in inside.instructions[element.operands[1]].types)
    return result.bytes
