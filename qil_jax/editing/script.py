"""Scripts: JSON lists of operations, checked as a whole before anything is computed, and replayed."""

import dataclasses
import json
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from qil_jax.command_line import nearest
from qil_jax.editing import layer_operations as of_layers
from qil_jax.editing import stack_operations as of_stacks
from qil_jax.editing.operation import Operation, problem_of
from qil_jax.editing.stack import EditError, Stack
from qil_jax.errors import ProblemsError, QilError
from qil_jax.strict_json import parse as parse_json

Operations = tuple[Operation, ...]
KINDS = (
    of_layers.Move,
    of_layers.Resize,
    of_layers.Rotate,
    of_layers.Flip,
    of_layers.Hue,
    of_layers.Tint,
    of_layers.GradientMap,
    of_layers.Opacity,
    of_layers.Crop,
    of_layers.Replace,
    of_stacks.Reorder,
    of_stacks.Duplicate,
    of_stacks.Delete,
    of_stacks.CropCanvas,
    of_stacks.ExtendCanvas,
    of_stacks.Refine,
)
"""All operations."""
FIELDS = {kind.op: [field.name for field in dataclasses.fields(kind)] for kind in KINDS}
"""The names of the fields of each operation."""
ADAPTER: TypeAdapter = TypeAdapter(Annotated[reduce(operator.or_, KINDS), Field(discriminator="op")])  # type: ignore[arg-type]


class ScriptError(ProblemsError):
    """A script cannot be carried out. The message lists all of its problems by operation, from 1, and field."""


def schema() -> dict[str, Any]:
    """The JSON schema of scripts."""
    one = ADAPTER.json_schema()
    definitions = one.pop("$defs")
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Editing script"}
    return {**head, "type": "array", "items": one, "$defs": definitions}


def to_json(operations: Iterable[Operation]) -> list[dict[str, Any]]:
    """Operations as the objects of a script, without the fields that have their defaults."""
    return [{"op": o.op, **ADAPTER.dump_python(o, mode="json", exclude_defaults=True)} for o in operations]


def parse(text: str | bytes, stack: Stack, *, folder: Path = Path(), name: str = "the script") -> Operations:
    """The operations of a script, if all of them can be carried out on a stack. No pixels are computed.

    Args:
      text: JSON; bytes in UTF-8.
      stack: the stack on which the script begins.
      folder: where paths of pictures begin.
      name: what the message calls the script.

    Raises:
      ScriptError: listing all problems, those of operations that follow from others too.
    """
    found, problems = [], []
    for number, item in enumerate(_items(text, name), start=1):
        try:
            operation = ADAPTER.validate_json(json.dumps(item))
            if isinstance(operation, of_layers.Replace | of_stacks.Refine):
                operation = dataclasses.replace(operation, picture=str(folder / operation.picture))
            found.append(operation)
        except ValidationError as error:
            problems += _lines(number, item, error)
            found.append(None)
    problems += _stack_problems(stack, found)
    if problems:
        raise ScriptError(name, [line for _, line in sorted(problems, key=lambda problem: problem[0])])
    return tuple(operation for operation in found if operation is not None)


def require_possible(stack: Stack, operations: Sequence[Operation]) -> None:
    """Check that operations made in Python can be carried out one after the other. No pixels are computed.

    Raises:
      ScriptError: listing all problems.
    """
    problems = []
    for number, operation in enumerate(operations, start=1):
        try:
            ADAPTER.validate_python(operation)
        except ValidationError as error:
            problems += _lines(number, {"op": operation.op}, error)
    problems = problems or list(_stack_problems(stack, operations))
    if problems:
        raise ScriptError("cannot edit", [line for _, line in problems])


def states(stack: Stack, operations: Iterable[Operation]) -> Iterator[Stack]:
    """The stack after each operation.

    Raises:
      ScriptError: if a layer would become too large, or all together, which only their pixels tell.
    """
    for number, operation in enumerate(operations, start=1):
        try:
            stack = operation.apply(stack)
            stack.require_held()
        except EditError as error:
            raise ScriptError("cannot edit", [_about(number, operation.op, error.field, str(error))]) from error
        yield stack


def replay(stack: Stack, operations: Iterable[Operation]) -> Stack:
    """The stack after all operations.

    Raises:
      ScriptError: if a layer would become too large, or all together, which only their pixels tell.
    """
    return reduce(lambda _, after: after, states(stack, operations), stack)


def _items(text: str | bytes, name: str) -> list[Any]:
    try:
        items = parse_json(text)
    except QilError as error:
        raise ScriptError(name, [str(error)]) from error
    if not isinstance(items, list):
        raise ScriptError(name, [f"is no JSON list of operations, but {type(items).__name__}"])
    return items


def _stack_problems(stack: Stack, operations: Sequence[Operation | None]) -> Iterator[tuple[int, str]]:
    """Number and message of each problem that operations have with the layers that they find."""
    for number, operation in enumerate(operations, start=1):
        if operation is None:
            continue
        errors, after = operation.problems(stack), stack
        if not errors:
            after = operation.outlined(stack)
            is_larger = math.prod(after.size) > math.prod(stack.size) or len(after.layers) > len(stack.layers)
            errors = [problem for problem in [problem_of(after.require_writable)] if problem and is_larger]
        yield from ((number, _about(number, operation.op, e.field, str(e))) for e in errors)
        if not errors:
            stack = after


def _about(number: int, op: str, field: str, message: str) -> str:
    return f"operation {number} ({op}){f', {field}' if field else ''}: {message}"


def _lines(number: int, item: Any, error: ValidationError) -> list[tuple[int, str]]:
    return [(number, _line(number, item, e)) for e in error.errors(include_url=False)]


def _line(number: int, item: Any, e: ErrorDetails) -> str:
    """Pydantic's error as a line of a message."""
    op = item.get("op") if isinstance(item, dict) else None
    match e["type"]:
        case "union_tag_not_found" | "model_attributes_type":
            return f"operation {number}: must be an object with the field op, one of {', '.join(FIELDS)}"
        case "union_tag_invalid":
            return f"operation {number}, op: {op!r} is none of {', '.join(FIELDS)}{nearest(str(op), FIELDS)}"
        case "dict_type" | "dataclass_type":
            return f"operation {number}: must be an object"
    field = ".".join(map(str, e["loc"][1:]))
    match e["type"]:
        case "missing":
            message = "is missing"
        case "unexpected_keyword_argument":
            known = FIELDS[str(op)]
            return _about(number, str(op), field, f"is no field, it has {', '.join(known)}{nearest(field, known)}")
        case "value_error":
            error = e.get("ctx", {})["error"]
            field, message = field or getattr(error, "field", ""), str(error)
        case _:
            message = f"{e['msg'][0].lower()}{e['msg'][1:]}, got {e['input']!r}"
    return _about(number, str(op), field, message)
