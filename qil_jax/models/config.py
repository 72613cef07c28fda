"""Released config JSON to frozen dataclasses; what the models do not support is refused."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from qil_jax.errors import QilError

T = TypeVar("T")

MOST_BLOCKS = 1000
MOST_VALUES = 4096
MOST_SIZE = 1 << 24
MOST_FLOAT = 3e38
"""Bounds far above any model, so that a wrong digit is an error instead of an exhausted memory."""

Blocks = Annotated[int, MOST_BLOCKS]
"""The type of a field that says how often a block repeats."""


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
      cls: a frozen dataclass; fields without a default must be present.
      values: the parsed JSON. Keys that start with "_" (class and version notes) are skipped.
      where: name of the file for error messages.
      fixed: keys the models support with one value only; any other value is refused.
      ignored: known keys that do not change the maths.

    Raises:
      ConfigError: listing every missing, unknown and unsupported key, and every value of a wrong type, together.
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
      ConfigError: listing them.
    """
    if problems:
        raise ConfigError(f"{where}:\n  " + "\n  ".join(problems))


def read_fields(cls: type, values: Mapping[str, Any], problems: list[str], *, prefix: str = "") -> dict[str, Any]:
    """The fields of a dataclass that `values` holds; what is absent without a default or of a wrong type is a problem.

    Args:
      cls: its annotations say what fits: Blocks and int (at least 1), float, bool, a StrEnum, tuples of these, None.
      values: the parsed JSON; other keys are skipped.
      problems: gets one line for each field that does not fit.
      prefix: put before the names in these lines.
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
      ConfigError: naming what is expected, such as "a number".
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
    most = inner[1] if origin is Annotated else MOST_SIZE
    if not number or not isinstance(value, int) or not 1 <= value <= most:
        raise ConfigError(f"a whole number from 1 to {most}")
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


def shown(value: Any) -> str:
    """The representation of a value for an error message, at most 60 characters of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _plain(value: Any) -> Any:
    return tuple(_plain(v) for v in value) if isinstance(value, list | tuple) else value
