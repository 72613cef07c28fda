"""Description of a config's settings as text: name, type, value and meaning of every field."""

import dataclasses
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from qil_jax.training.config_file import load_experiment
from qil_jax.training.settings import defaults_of, to_json

WIDTH = 100
SHOWN = 60
"""Maximum number of characters shown of a value."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A leaf field of a config.

    Attributes:
      name: dotted name in the syntax of --set.
      kind: description of the field's type.
      value: value of the field in the syntax of --set.
      meaning: description of the field in its dataclass's docstring; empty if there is none.
      is_set: whether the field belongs to the config; else to an optional part of it that is none.
    """

    name: str
    kind: str
    value: str
    meaning: str
    is_set: bool = True


def settings_text(file: Path, overrides: Sequence[str] = ()) -> str:
    """A text that lists all settings of a config file, for --help.

    Raises:
      ExperimentError: if the config cannot be loaded, see `load_experiment`.
    """
    experiment = load_experiment(file, overrides)
    lines = [f"settings of {file}, changed by --set NAME=VALUE:"]
    for setting in settings(experiment, to_json(experiment)):
        value = setting.value if len(setting.value) <= SHOWN else f"{setting.value[:SHOWN]}..."
        unless = "" if setting.is_set else f" if a part of {setting.name.rpartition('.')[0]} is set"
        lines.append(f"  {setting.name} ({setting.kind}) = {value}{unless}")
        lines += textwrap.wrap(setting.meaning, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def settings(config: Any, values: dict[str, Any], above: str = "") -> Iterator[Setting]:
    """The settings of a config and of nested configs, in the order of the fields; `values` is the config as JSON.

    An optional config that is none is followed by its defaults, marked as not set.
    """
    hints, meanings = typing.get_type_hints(type(config)), attributes_of(type(config))
    for field in dataclasses.fields(config):
        part, name = getattr(config, field.name), f"{above}{field.name}"
        if dataclasses.is_dataclass(part):
            yield from settings(part, values[field.name], f"{name}.")
        else:
            yield Setting(
                name=name,
                kind=kind_of(hints[field.name]),
                value=_written(values[field.name]),
                meaning=meanings.get(field.name, ""),
            )
        if part is None and (unset := defaults_of(config, field.name)) is not None:
            parts = settings(unset, TypeAdapter(type(unset)).dump_python(unset, mode="json"), f"{name}.")
            yield from (dataclasses.replace(setting, is_set=False) for setting in parts)


def attributes_of(kind: type) -> dict[str, str]:
    """The entries of the section `Attributes:` of a class's docstring, by name; "a, b: text" describes both names."""
    lines = inspect.cleandoc(kind.__doc__ or "").splitlines()
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines[lines.index("Attributes:") + 1 :] if "Attributes:" in lines else []:
        if not line.startswith("  "):
            break
        if line.startswith("    "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            head, _, text = line.strip().partition(": ")
            names = head.split(", ")
            found |= dict.fromkeys(names, text)
    return found


def kind_of(hint: Any) -> str:
    """A description of a type, such as "int or none" or "list of text"."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(map(kind_of, arguments))
    if typing.get_origin(hint) is tuple:
        return f"list of {kind_of(arguments[0])}" if arguments[-1] is ... else f"[{', '.join(map(kind_of, arguments))}]"
    if issubclass(hint, Enum):
        return " or ".join(str(member.value) for member in hint)
    return "text" if hint is str else "none" if hint is type(None) else str(hint.__name__)


def _written(value: Any) -> str:
    """A JSON value in the syntax of --set."""
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
