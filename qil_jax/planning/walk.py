"""How often each instruction of a compiled program runs, with the trip counts of its loops."""

import re
from collections.abc import Iterator

from qil_jax.planning.hlo import Computation, Instruction, Module

PLAIN = ("call", "conditional")
"""Instructions whose computations are run as they are, once. Of a conditional every branch counts."""


def executed(module: Module) -> Iterator[tuple[Computation, Instruction, int]]:
    """Every instruction that runs, with its computation and how often it runs; fusions are not entered.

    Raises:
      ValueError: if a loop has no trip count that the program shows.
    """
    yield from _executed(module, module.entry, 1)


def _executed(module: Module, name: str, times: int) -> Iterator[tuple[Computation, Instruction, int]]:
    computation = module.computations[name]
    for instruction in computation.instructions.values():
        yield computation, instruction, times
        if instruction.opcode == "while":
            assert instruction.body is not None
            count = trip_count(module, computation, instruction)
            yield from _executed(module, instruction.body, times * count)
        elif instruction.opcode in PLAIN:
            for called in instruction.called:
                yield from _executed(module, called, times)


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int:
    """The number of iterations of a loop: what the compiler wrote down, or what the loop's condition says.

    Raises:
      ValueError: if neither says it.
    """
    if loop.trip_count is not None:
        return loop.trip_count
    found = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
    assert found is not None
    limit = _limit(module, module.computations[found[1]])
    if limit is None:
        raise ValueError(f"loop {loop.name}: its condition {found[1]} compares with no constant")
    index, end = limit
    state = computation.instructions.get(loop.operands[0])
    first = state.operands[index] if state is not None and state.opcode == "tuple" else ""
    return end - (_constant(computation, first) or 0)


def _limit(module: Module, condition: Computation) -> tuple[int, int] | None:
    """The element of a loop's state that counts, and the constant below which the loop goes on; None: another test."""
    test, inside = condition.root, condition
    given: dict[str, str] = {}
    if test.opcode == "fusion":
        inside = module.computations[test.called[0]]
        given = {inside.parameters[i].name: name for i, name in enumerate(test.operands)}
        test = inside.root
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    left, right = test.operands
    counter = condition.instructions.get(given.get(left, left))
    index = re.search(r"index=(\d+)", counter.attributes) if counter is not None else None
    end = _constant(condition, given[right]) if right in given else _constant(inside, right)
    return None if end is None or index is None else (int(index[1]), end)


def _constant(computation: Computation, name: str) -> int | None:
    """The value of a whole number that is a constant of the computation, perhaps copied to another memory."""
    instruction = computation.instructions.get(name)
    while instruction is not None and instruction.opcode in ("copy", "copy-start", "copy-done", "bitcast"):
        instruction = computation.instructions.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.operands[0]):
        return None
    return int(instruction.operands[0])
