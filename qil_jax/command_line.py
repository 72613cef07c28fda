"""The argument parser that all programs share, and options of dataclasses as its arguments.

It imports no JAX, so that --help is printed without delay.
"""

import argparse
import difflib
import functools
import math
import sys
import threading
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any, NoReturn

from qil_jax.errors import cut
from qil_jax.errors import message as printed

MOST = 2**32 - 1
"""The largest number of an option, which is the largest seed: counts beyond it would only fill the memory."""


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps the line breaks of its description and suggests the nearest known option.

    Options of the types int and float take what `integer` and `number` take. `elsewhere` is appended to the message
    about unknown options, and says where other options belong.
    """

    def __init__(self, *, elsewhere: str = "", **options: Any):
        defaults = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(**{**defaults, **options})
        self.register("type", int, integer)
        self.register("type", float, number)
        self.elsewhere = elsewhere

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Parse arguments as argparse does, after a check that reports all unknown options together."""
        given = list(sys.argv[1:] if args is None else args)
        known = _options(self)
        before, _ = at_dashes(given)
        names = [word.split("=")[0] for word in before if word.startswith("--")]
        unknown = [f"unknown option {name}{nearest(name, known)}" for name in names if name not in known]
        if unknown:
            self.error("; ".join(unknown) + self.elsewhere)
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        """Print a message and exit with status 2; what does not print in it is escaped."""
        super().error(printed(message))


def at_dashes(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before and after the first `--`."""
    end = words.index("--") if "--" in words else len(words)
    return list(words[:end]), list(words[end + 1 :])


def nearest(name: str, known: Iterable[str]) -> str:
    """A suggestion of the most similar known name, for the end of a message; empty if no name is similar."""
    found = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def integer(text: str) -> int:
    """The value of an option that is an integer of at most `MOST`, or minus that.

    Raises:
      ArgumentTypeError: if `text` is something else.
    """
    try:
        value = int(text)
    except ValueError:  # or more digits than Python converts
        value = MOST + 1
    if not -MOST <= value <= MOST:
        raise ArgumentTypeError(f"{cut(text)} is no integer of at most {MOST}")
    return value


def number(text: str) -> float:
    """The value of an option that is a number from minus `MOST` to `MOST`.

    Raises:
      ArgumentTypeError: if `text` is something else.
    """
    value = _float(text)
    if not -MOST <= value <= MOST:
        raise ArgumentTypeError(f"{cut(text)} is no number of at most {MOST}")
    return value


def seconds(text: str) -> float:
    """The value of an option in seconds, 0 or more.

    Raises:
      ArgumentTypeError: if `text` is something else.
    """
    value = _float(text)
    if not 0 <= value <= threading.TIMEOUT_MAX:
        raise ArgumentTypeError(f"{cut(text)} is no number of seconds: give 0 or more")
    return value


def one_of(choices: Iterable[StrEnum]) -> dict[str, Any]:
    """The arguments of `add_argument` for an option whose values are members of an enum: all of them, or some."""
    members = tuple(choices)
    return {"type": functools.partial(_member, members), "metavar": f"{{{','.join(members)}}}"}


def _member(members: Sequence[StrEnum], text: str) -> StrEnum:
    found = next((member for member in members if member == text), None)
    if found is None:
        raise ArgumentTypeError(f"invalid choice: {cut(text)!r} (choose from {', '.join(members)})")
    return found


def flag(name: str) -> str:
    """The name of an option on the command line."""
    return "--" + name.replace("_", "-")


def add_options(add: Callable[..., Any], cls: type, names: Sequence[str], **notes: str) -> None:
    """Add options of a dataclass to a command-line parser. Absent options have the value None.

    Args:
      add: method `add_argument` of a parser or of a group.
      cls: dataclass that has the options.
      names: names of the options to add.
      notes: text to append to the help of an option, by name.
    """
    from qil_jax.options import options_of, plain_type

    options = options_of(cls)
    for name in names:
        kind, said = plain_type(cls, name), options[name]
        help = f"{said.help}; {notes[name]}" if name in notes else said.help
        if kind is bool:
            add(flag(name), action="store_true", default=None, help=help)
            continue
        default = getattr(cls, name)
        means = f": {said.unset}" if default is None else " a space" if default == " " else f" {default}"
        says = one_of(kind) if issubclass(kind, StrEnum) else {"type": kind}
        add(flag(name), **says, help=f"{help} (default{means})")


def _float(text: str) -> float:
    """The number that a text says; nan, which is within no bounds, if it says none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """The option strings of a parser and of its subcommands."""
    known = set()
    for action in parser._actions:
        known |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            known |= {option for sub in action.choices.values() for option in _options(sub)}
    return known
