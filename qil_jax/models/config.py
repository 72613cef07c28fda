"""Parsing of released config JSON as frozen dataclasses; unsupported values are refused."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from annotated_types import Interval, MaxLen

from qil_jax.errors import QilError, shown
from qil_jax.options import Number, read_fields

T = TypeVar("T")

MOST_BLOCKS = 1000
MOST_VALUES = MaxLen(4096)
MOST_SIZE = 1 << 24
"""Bounds far above any real model, so that a mistyped size raises an error instead of exhausting memory."""

Size = Annotated[int, Interval(ge=1, le=MOST_SIZE)]
"""The type of a field that is a width, a side or another number of things."""
Blocks = Annotated[int, Interval(ge=1, le=MOST_BLOCKS)]
"""The type of a field that gives the number of repetitions of a block."""
Index = Annotated[int, Interval(ge=0, le=MOST_SIZE)]
"""The type of a field that counts from 0, such as a token id."""
Sizes = Annotated[tuple[Size, ...], MOST_VALUES]
Indexes = Annotated[tuple[Index, ...], MOST_VALUES]
Numbers = Annotated[tuple[Number, ...], MOST_VALUES]
Flags = Annotated[tuple[bool, ...], MOST_VALUES]


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


def _plain(value: Any) -> Any:
    return tuple(_plain(v) for v in value) if isinstance(value, list | tuple) else value
