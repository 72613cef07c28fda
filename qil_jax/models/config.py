"""Parsing of released config JSON as frozen dataclasses; unsupported values are refused."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from qil_jax.errors import QilError, shown

T = TypeVar("T")

MOST_BLOCKS = 1000
MOST_VALUES = 4096
MOST_SIZE = 1 << 24
MOST_FLOAT = 3e38
"""Bounds far above any real model, so that a mistyped size raises an error instead of exhausting memory."""

Blocks = Annotated[int, 1, MOST_BLOCKS]
"""The type of a field that gives the number of repetitions of a block."""
Index = Annotated[int, 0, MOST_SIZE]
"""The type of a field that counts from 0, such as a token id."""


class ConfigError(QilError):
    """A config.json lacks a key, or holds one that is unknown or not supported."""


def parse_config(
    cls: type[T],
    values: Mapping[str, Any],
    *,
    where: str,
    fixed: Mapping[str, Any] | None = None,
    ignored: tuple[str, ...] = (),
) -> T:
    """Build the dataclass `cls` from the keys of `values` that carry its field names; lists become tuples.

    Args:
      cls: frozen dataclass, whose fields without a default must be present.
      values: parsed JSON, of which keys that start with "_" (class and version notes) are skipped.
      where: name of the file in error messages.
      fixed: keys of which the models support a single value; any other value is refused.
      ignored: known keys that do not affect the computation.

    Raises:
      ConfigError: if keys are missing, unknown or unsupported, or values have a wrong type; all are listed.
    """
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    fixed = fixed or {}
    problems = []
    for key, value in values.items():
        if key in fixed and _plain(value) != _plain(fixed[key]):
            problems.append(f"{key} = {shown(value)} is not supported (only {fixed[key]!r})")
        elif key not in names and key not in fixed and key not in ignored and not key.startswith("_"):
            problems.append(f"{key!r} is unknown: remove it, or check that this is the right component's config")
    found = read_fields(cls, values, problems)
    require_none(problems, where)
    return cls(**found)


def require_none(problems: list[str], where: str) -> None:
    """Refuse a file that has problems.

    Raises:
      ConfigError: if there are problems; all are listed.
    """
    if problems:
        raise ConfigError(f"{where}:\n  " + "\n  ".join(problems))


def read_fields(cls: type, values: Mapping[str, Any], problems: list[str], *, prefix: str = "") -> dict[str, Any]:
    """Read the fields of a dataclass from `values`; an absent required field or a wrong type is a problem.

    Args:
      cls: dataclass with fields of type Blocks, Index, int (from 1), float, bool, a StrEnum, tuples of these, or None.
      values: parsed JSON; keys that are no field are skipped.
      problems: list to which a line is appended for each invalid field.
      prefix: text before the field names in these lines.
    """
    kinds = typing.get_type_hints(cls, include_extras=True)
    found = {}
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.name not in values:
            problems += [f"{prefix}{field.name!r} is missing: copy it from the released config.json"] * required
            continue
        try:
            found[field.name] = fitted(values[field.name], kinds[field.name])
        except ConfigError as error:
            problems.append(f"{prefix}{field.name} = {shown(values[field.name])}: must be {error}")
    return found


def fitted(value: Any, kind: Any) -> Any:
    """A JSON value converted to the type `kind` of a field (`read_fields` lists the types).

    Raises:
      ConfigError: if the value does not fit; the message names the expected type, such as "a number".
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _fitted_list(value, inner)
    if origin is types.UnionType:
        return None if value is None else fitted(value, inner[0])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        if value not in tuple(kind):
            raise ConfigError(f"one of {', '.join(kind)}")
        return kind(value)
    if kind is bool:
        if not isinstance(value, bool):
            raise ConfigError("true or false")
        return value
    if kind is float:
        if not number or not -MOST_FLOAT < value < MOST_FLOAT:
            raise ConfigError("a number")
        return float(value)
    least, most = inner[1:] if origin is Annotated else (1, MOST_SIZE)
    if not number or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"a whole number from {least} to {most}")
    return value


def _fitted_list(value: Any, inner: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or len(value) > MOST_VALUES:
        raise ConfigError("a list")
    kinds = (inner[0],) * len(value) if inner[-1] is ... else inner
    if len(value) != len(kinds):
        raise ConfigError(f"a list of {len(kinds)}")
    try:
        return tuple(fitted(v, kind) for v, kind in zip(value, kinds, strict=True))
    except ConfigError as error:
        raise ConfigError(f"a list, each of it {error}") from None


def _plain(value: Any) -> Any:
    return tuple(_plain(v) for v in value) if isinstance(value, list | tuple) else value
