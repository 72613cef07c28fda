"""Overrides, JSON serialisation and validation by pydantic of an experiment's settings, by dotted name."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from qil_jax.command_line import nearest
from qil_jax.errors import QilError, halved
from qil_jax.strict_json import parse
from qil_jax.training.experiment import Experiment, ExperimentError

Names = tuple[str, ...]
Place = tuple[str | int, ...]
"""A path of field names from the outermost field; a number is an index in a tuple."""
ADAPTER = TypeAdapter(Experiment)


def to_json(experiment: Experiment) -> dict[str, Any]:
    """The experiment as JSON: dataclasses become objects, enums their values, tuples lists."""
    return ADAPTER.dump_python(experiment, mode="json")


def from_json(text: str | bytes) -> Experiment:
    """Parse the JSON of an experiment that `to_json` wrote.

    Raises:
      ExperimentError: if the text is not JSON, or not that of an experiment.
    """
    try:
        parse(text)  # pydantic's own parser takes a key twice
        return ADAPTER.validate_json(text, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise ExperimentError("; ".join(f"{_dotted(e['loc']) or 'it'} {_fault(e)}" for e in found)) from error
    except QilError as error:
        raise ExperimentError(str(error)) from error


def require_types(experiment: Experiment) -> None:
    """Refuse fields whose values are not of their types.

    Raises:
      ExperimentError: if there are any; the message gives the name and value of each.
    """
    try:
        ADAPTER.validate_python(experiment, strict=True)
    except ValidationError as error:
        raise ExperimentError("\n  ".join(_problems(error, experiment, {}))) from error


def changed(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """The experiment with overrides like "optimiser.learning_rate=1e-4", validated after all of them are applied.

    Values are numbers, strings, `true` and `false`, `none` for optional fields, and JSON for lists. A part of an
    optional config that is none sets the config, with defaults for its other parts.

    Raises:
      ExperimentError: if overrides are invalid; the message has a line for each problem.
    """
    if not overrides:
        return experiment
    tree, given, problems = dataclasses.asdict(experiment), {}, []
    for override in overrides:
        name, equals, text = override.partition("=")
        if half := halved(override):
            problems.append(f"'{override}': has half of a surrogate pair, {half}: give text in UTF-8")
            continue
        if not equals:
            problems.append(f"'{override}': write an override as name=value, such as steps=100")
            continue
        path = tuple(name.split("."))
        try:
            _put(tree, experiment, path, text)
            given[path] = text
        except ExperimentError as error:
            problems.append(str(error))
    try:
        result = ADAPTER.validate_python(tree)
    except ValidationError as error:
        problems += _problems(error, experiment, given)
    else:
        if not problems:
            return result
    raise ExperimentError("\n  ".join(problems))


def _put(tree: dict[str, Any], config: Any, path: Names, text: str) -> None:
    """Set the value at a path of `tree`, which is `config` as a dictionary.

    Raises:
      ExperimentError: if the path is that of a nested config, goes beyond a field, or names no field.
    """
    owner: Any = config
    name = _dotted(path)
    for place, part in enumerate(path):
        if not dataclasses.is_dataclass(config):
            raise ExperimentError(f"'{name}': '{path[place - 1]}' has no parts, its value is {config!r}")
        owner, fields = config, [field.name for field in dataclasses.fields(config)]
        if part not in fields:
            has = f"has no '{part}', it has {', '.join(fields)}{nearest(part, fields)}"
            raise ExperimentError(f"'{name}': {type(config).__name__} {has}")
        if place:
            above = path[place - 1]
            if tree[above] is None:
                tree[above] = dataclasses.asdict(owner)  # type: ignore[arg-type]
            tree = tree[above]
        config = getattr(config, part)
        if config is None:
            config = defaults_of(owner, part)
    if dataclasses.is_dataclass(config) and not (text.lower() == "none" and defaults_of(owner, path[-1])):
        parts = ", ".join(f"{name}.{field.name}" for field in dataclasses.fields(config))
        raise ExperimentError(f"'{name}': '{text}' is given for a whole {type(config).__name__}: set a part, {parts}")
    tree[path[-1]] = _value(typing.get_type_hints(type(owner))[path[-1]], text)


def defaults_of(owner: Any, name: str) -> Any:
    """The nested config that an optional field has by default once it is set; None if the field has no such type."""
    kinds = typing.get_args(typing.get_type_hints(type(owner))[name])
    nested: list[Any] = [kind for kind in kinds if dataclasses.is_dataclass(kind)] if type(None) in kinds else []
    return nested[0]() if nested else None


def _value(kind: Any, text: str) -> Any:
    """Convert `none`, booleans and JSON lists for a field of this type; pydantic converts any other text."""
    if text.lower() == "none" and type(None) in typing.get_args(kind):
        return None
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if typing.get_origin(kind) is tuple:
        try:
            return parse(text)
        except QilError:
            return text
    return text


def _problems(error: ValidationError, config: Any, given: Mapping[Names, str]) -> list[str]:
    """Pydantic's errors as lines of a message, with the names and values of the overrides that caused them."""
    lines = []
    for e in error.errors(include_url=False):
        path = _path(config, e["loc"])
        if path is None:
            continue
        about = {name: text for name, text in given.items() if path and _overlap(name, path)}
        names = ", ".join(f"'{_dotted(name)}'" for name in about or [path])
        value = next(iter(about.values()), e["input"])
        if e["type"] == "value_error":
            lines.append(f"{names}: {_fault(e)}" if path else _fault(e))
        else:
            lines.append(f"{names}: '{value}' {_fault(e)}")
    return lines


def _path(config: Any, loc: Sequence[str | int]) -> Place | None:
    """The location of a pydantic error as a path of field names.

    Pydantic inserts the class of a union's member before field names in it. The result is None if the error concerns
    a member of which the config's value is no instance.
    """
    path = []
    for part in loc:
        if not dataclasses.is_dataclass(config):
            path.append(part)
        elif isinstance(part, str) and hasattr(config, part):
            path.append(part)
            config = getattr(config, part)
        elif part != type(config).__name__:
            return None
    return tuple(path)


def _overlap(a: Place, b: Place) -> bool:
    """Whether one of two paths is a prefix of the other."""
    return all(x == y for x, y in zip(a, b, strict=False))


def _fault(e: ErrorDetails) -> str:
    """The predicate of the error's message, whose subject is the value."""
    match e["type"]:
        case "value_error":
            return str(e.get("ctx", {})["error"])
        case "tuple_type":
            return "is not a JSON list"
        case "bool_type":
            return "is not true or false"
    return f"is not valid: {e['msg'][0].lower()}{e['msg'][1:]}"


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(map(str, path))
