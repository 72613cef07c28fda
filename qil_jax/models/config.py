"""Reading a released config JSON into a frozen dataclass, refusing what the models do not support."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A component's config.json asks for something that is missing, unknown or unsupported."""


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
      ConfigError: listing every missing, unknown and unsupported key together.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    fixed = fixed or {}
    problems = []
    for key, value in values.items():
        if key in fixed and _plain(value) != _plain(fixed[key]):
            problems.append(f"{key} = {value!r} is not supported (only {fixed[key]!r})")
        elif key not in fields and key not in fixed and key not in ignored and not key.startswith("_"):
            problems.append(f"{key!r} is unknown: remove it, or check that this is the right component's config")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in values and required:
            problems.append(f"{name!r} is missing: copy it from the released config.json")
    if problems:
        raise ConfigError(f"{where}:\n  " + "\n  ".join(problems))
    return cls(**{k: _plain(v) for k, v in values.items() if k in fields})


def _plain(value: Any) -> Any:
    return tuple(_plain(v) for v in value) if isinstance(value, list | tuple) else value
