"""Options as dataclass fields: default, bounds and help are defined once, for the API and for command lines."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

from qil_jax.choices import LONGEST_TEXT, integer_problems, resolution_problems
from qil_jax.command_line import one_of
from qil_jax.errors import halved, shown
from qil_jax.inference.defaults import Defaults

LARGEST = sys.float_info.max
KEY = "option"
"""Key of an `Option` in the metadata of its field."""
Named = Callable[[str], str]
"""A function from a field's name to its name in messages."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """Type, bounds and help of an option.

    Attributes:
      kind: type of the values: bool, int, float, str or a StrEnum.
      help: help text of one line, without the default.
      least: lower bound of an integer.
      most: upper bound of an integer; None: unbounded.
      bucket: whether the integer is the side of a size bucket, in pixels.
      optional: whether None is allowed.
      unset: description of the meaning of None, for options that `Defaults` lacks.
      decides: whether the value affects the result.
      later: whether results record the value only where it is not the default, so that those made before there was
        this option stay valid.
    """

    kind: type
    help: str
    least: int = 0
    most: int | None = None
    bucket: bool = False
    optional: bool = False
    unset: str = ""
    decides: bool = True
    later: bool = False

    def problems(self, name: str, value: object) -> list[str]:
        """Messages that say why a value is invalid; empty for a valid one."""
        if value is None and self.optional:
            return []
        if self.bucket:
            return resolution_problems(name, value)
        if self.kind is bool:
            return [] if isinstance(value, bool) else [f"{name} must be True or False, got {shown(value)}"]
        if self.kind is int:
            return integer_problems(name, value, least=self.least, most=self.most)
        if self.kind is float:
            number = isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
            return [] if number else [f"{name} must be a finite number, got {shown(value)}"]
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            return [f"{name} has {len(value)} characters, {LONGEST_TEXT} at most: shorten it"]
        if isinstance(value, str) and (half := halved(value)):
            return [f"{name} has half of a surrogate pair, {half}: give text, in UTF-8 on a command line"]
        if isinstance(value, self.kind):
            return []
        if issubclass(self.kind, StrEnum):
            where = f"{self.kind.__module__}.{self.kind.__name__}"
            return [f"{name} must be one of {', '.join(self.kind)} of {where}, got {shown(value)}"]
        return [f"{name} must be text{' or None' if self.optional else ''}, got {shown(value)}"]


def option(default: Any, kind: type, help: str, **says: Any) -> Any:
    """A dataclass field that is an option; `says` gives further attributes of `Option`."""
    says = {"optional": default is None, **says}
    return dataclasses.field(default=default, metadata={KEY: Option(kind=kind, help=help, **says)})


def options_of(given: Any) -> dict[str, Option]:
    """The options of a dataclass, or of an instance of one, by name."""
    return {field.name: field.metadata[KEY] for field in dataclasses.fields(given) if KEY in field.metadata}


def option_problems(given: Any, named: Named = str) -> list[str]:
    """Messages for all invalid options of an instance, each option checked independently."""
    return [
        problem
        for name, option in options_of(given).items()
        for problem in option.problems(named(name), getattr(given, name))
    ]


def deciding(given: Any) -> dict[str, Any]:
    """The values of the options that affect a result, as JSON values."""
    found = {
        name: getattr(given, name)
        for name, option in options_of(given).items()
        if option.decides and not (option.later and getattr(given, name) == getattr(type(given), name))
    }
    return {name: str(value) if isinstance(value, StrEnum) else value for name, value in found.items()}


def flag(name: str) -> str:
    """The name of an option on the command line."""
    return "--" + name.replace("_", "-")


def add_options(add: Callable[..., Any], cls: type, names: Sequence[str], **notes: str) -> None:
    """Add options of a dataclass to a command-line parser. Absent options have the value None.

    Args:
      add: method `add_argument` of a parser or of a group.
      cls: dataclass that defines the options.
      names: names of the options to add.
      notes: text to append to the help of an option, by name.
    """
    options = options_of(cls)
    for name in names:
        option = options[name]
        note = f"; {notes[name]}" if name in notes else ""
        if option.kind is bool:
            add(flag(name), action="store_true", default=None, help=option.help + note)
            continue
        says = one_of(option.kind) if issubclass(option.kind, StrEnum) else {"type": option.kind}
        add(flag(name), **says, help=f"{option.help}{note} (default{_default(cls, name, option)})")


def _default(cls: type, name: str, option: Option) -> str:
    value = getattr(cls, name)
    if value is not None:
        return " a space" if value == " " else f" {value}"
    return f": {option.unset or 'what the checkpoint says in qil.json, else ' + str(getattr(Defaults, name))}"
