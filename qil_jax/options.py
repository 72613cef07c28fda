"""Options and settings as dataclasses: pydantic checks their values, and messages name all that are wrong at once.

A field says everything once: its annotation the type and the bounds, `option` the help of the command line and whether
a result depends on the value. Python's callers, command lines, the app and files of JSON read it from there.

Checks are strict: neither is `True` a number, nor is a text. Of JSON, lists become tuples, and texts members of enums.
Pydantic is imported and an adapter made when something is checked, so that `--help` waits for neither.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, GroupedMetadata, Gt, Le, MaxLen, MultipleOf, Predicate

from qil_jax.choices import LARGEST, LONGEST_TEXT
from qil_jax.errors import ProblemsError, halved, shown

if TYPE_CHECKING:
    from pydantic import TypeAdapter

CLOSED = {"extra": "forbid"}
"""`__pydantic_config__` of a dataclass that refuses keys which it does not have."""
KEY = "option"
"""Key of an `Option` in the metadata of its field."""
Named = Callable[[str], str]
"""A function from a field's name to its name in messages."""


Number = Annotated[float, Predicate(lambda value: -LARGEST <= value <= LARGEST)]
"""The type of a field that is a finite number."""
Text = Annotated[str, Predicate(lambda text: not halved(text))]
"""The type of a text that is to be encoded: it holds no half of a surrogate pair."""
ShortText = Annotated[Text, MaxLen(LONGEST_TEXT)]
"""The type of a field that is a text of bounded length, such as a prompt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """What a field says beside its type and its default.

    Attributes:
      help: help text of one line, without the default.
      unset: what None means.
      decides: whether the value affects a result, which then records it.
      later: whether results record the value only where it is not the default, so that those made before there was
        this option stay valid.
    """

    help: str
    unset: str = ""
    decides: bool = True
    later: bool = False


def option(default: Any, help: str, *, unset: str = "", decides: bool = True, later: bool = False) -> Any:
    """A dataclass field that is an option; see `Option`."""
    says = Option(help=help, unset=unset, decides=decides, later=later)
    return dataclasses.field(default=default, metadata={KEY: says})


def options_of(cls: type) -> dict[str, Option]:
    """The options of a dataclass by name; a field that only narrows the type of an inherited option is that option."""
    fields = [field for base in reversed(cls.__mro__) for field in getattr(base, "__dataclass_fields__", {}).values()]
    return {field.name: field.metadata[KEY] for field in fields if KEY in field.metadata}


def problems_of(options: Any, named: Named = str) -> list[str]:
    """Messages for all invalid options of an instance of a dataclass, each checked independently of the others."""
    return problems_in(type(options), {name: getattr(options, name) for name in options_of(type(options))}, named)


def problems_in(cls: type, values: Mapping[str, object], named: Named = str) -> list[str]:
    """Messages for all values, by name, that are none of the options of a dataclass."""
    kinds = _kinds(cls)
    return [problem for name, value in values.items() for problem in value_problems(named(name), value, kinds[name])]


def value_problems(name: str, value: object, kind: Any) -> list[str]:
    """The reason why a value is none of a type, such as `Annotated[int, Ge(1)]`; empty if it is one."""
    found = _faults(kind, value)
    return [f"{name} {_complaint(value, kind, found[0])}"] if found else []


def recorded(options: Any) -> dict[str, Any]:
    """The values of the options that affect a result, as JSON values."""
    values = {
        name: getattr(options, name)
        for name, said in options_of(type(options)).items()
        if said.decides and not (said.later and getattr(options, name) == getattr(type(options), name))
    }
    return {name: str(value) if isinstance(value, StrEnum) else value for name, value in values.items()}


def plain_type(cls: type, name: str) -> Any:
    """The type of an option of a dataclass, without None and without its bounds."""
    return _parts(_kinds(cls)[name]).kind


def read_fields(cls: type, values: Mapping[str, Any], problems: list[str], *, prefix: str = "") -> dict[str, Any]:
    """The fields of a dataclass that JSON gives; an absent required field or a value of another type is a problem.

    Args:
      cls: dataclass.
      values: parsed JSON; keys that are no field are skipped.
      problems: list to which a line is appended for each invalid field.
      prefix: text before the fields' names in these lines.
    """
    kinds, found = _kinds(cls), {}
    for field in dataclasses.fields(cls):
        if field.name not in values:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                problems.append(f"{prefix}{field.name!r} is missing: copy it from the released config.json")
            continue
        kind = kinds[field.name]
        value = _of_json(values[field.name], kind)
        if _faults(kind, value):
            problems.append(f"{prefix}{field.name} = {shown(values[field.name])}: must be {expected(kind)}")
        else:
            found[field.name] = _adapter(kind).validate_python(value)
    return found


def fitted(kind: Any, value: Any, *, where: str, fix: str) -> Any:
    """A value of JSON as a type that pydantic knows, such as a dataclass, by pydantic's own rules and messages.

    Raises:
      ProblemsError: if it does not fit; the message names `where`, every place in the value, and `fix`.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        found = error.errors(include_url=False)
        problems = [f"{'.'.join(map(str, e['loc'])) or 'it'}: {_message(e)}, got {shown(e['input'])}" for e in found]
        raise ProblemsError(where, [*problems, fix]) from error


def expected(kind: Any) -> str:
    """What JSON a type takes, in words, such as "a whole number from 1 to 1000"."""
    parts = _parts(kind)
    inner = typing.get_args(parts.kind)
    bounds = _bounds(parts.constraints)
    match typing.get_origin(parts.kind) or parts.kind:
        case origin if origin is tuple and inner[-1] is ...:
            words = f"a list, each of it {expected(inner[0])}"
        case origin if origin is tuple:
            words = f"a list of {len(inner)}, each of it {expected(inner[0])}"
        case origin if isinstance(origin, type) and issubclass(origin, Mapping):
            words = f"an object, each value of it {expected(inner[1])}"
        case origin if isinstance(origin, type) and issubclass(origin, StrEnum):
            words = f"one of {', '.join(origin)}"
        case _ if bounds.startswith("a multiple"):
            words = bounds
        case origin:
            noun = {bool: "true or false", int: "a whole number", str: "a text"}.get(origin, "a number")
            words = f"{noun}{' of' * bounds.startswith('at')} {bounds}".strip()
    return words


@dataclasses.dataclass(frozen=True)
class _Parts:
    """A type without None and without its metadata, whether it has None, and its constraints."""

    kind: Any
    optional: bool = False
    constraints: tuple[Any, ...] = ()


def _parts(kind: Any) -> _Parts:
    if typing.get_origin(kind) in (typing.Union, types.UnionType) and type(None) in typing.get_args(kind):
        (inner,) = (member for member in typing.get_args(kind) if member is not type(None))
        return dataclasses.replace(_parts(inner), optional=True)
    if typing.get_origin(kind) is Annotated:
        plain, *metadata = typing.get_args(kind)
        return _Parts(plain, constraints=tuple(_flat(metadata)))
    return _Parts(kind)


def _flat(metadata: Iterable[Any]) -> Iterable[Any]:
    for said in metadata:
        yield from said if isinstance(said, GroupedMetadata) else (said,)


def _bounds(constraints: Iterable[Any]) -> str:
    """The bounds of a number in words; empty if there are none."""
    found: dict[type, Any] = {type(said): said for said in constraints}
    if MultipleOf in found:
        return f"a multiple of {found[MultipleOf].multiple_of}"
    if Ge in found and Le in found:
        return f"from {_figure(found[Ge].ge)} to {_figure(found[Le].le)}"
    words = [f"at least {_figure(found[Ge].ge)}"] if Ge in found else []
    words += [f"above {_figure(found[Gt].gt)}"] if Gt in found else []
    words += [f"at most {_figure(found[Le].le)}"] if Le in found else []
    return " and ".join(words)


def _figure(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _complaint(value: Any, kind: Any, fault: str) -> str:
    """What is said of a value, by the name that pydantic has for its fault; the subject is its name."""
    parts = _parts(kind)
    bounds = _bounds(parts.constraints)
    if fault == "predicate_failed" and isinstance(value, str):
        return f"has half of a surrogate pair, {halved(value)}: give text, in UTF-8 on a command line"
    if fault.endswith("too_long") and isinstance(value, str):
        return f"has {len(value)} characters, {LONGEST_TEXT} at most: shorten it"
    if fault.startswith(("greater", "less", "multiple")) or bounds.startswith("a multiple"):
        words = bounds
    elif isinstance(parts.kind, type) and issubclass(parts.kind, StrEnum):
        words = f"one of {', '.join(parts.kind)} of {parts.kind.__module__}.{parts.kind.__name__}"
    else:
        words = {bool: "True or False", int: "an integer", str: "text"}.get(parts.kind, "a finite number")
        words += " or None" if parts.optional and parts.kind is str else ""
    return f"must be {words}, got {shown(value)}"


def _message(error: Mapping[str, Any]) -> str:
    """What pydantic says, but of a predicate, of which it only says that it failed."""
    if error["type"] == "predicate_failed" and isinstance(error["input"], str):
        return f"has half of a surrogate pair, {halved(error['input'])}, which no encoding holds"
    return error["msg"]


def _faults(kind: Any, value: object) -> list[str]:
    """Pydantic's names of the faults of a value of Python."""
    from pydantic import ValidationError

    try:
        _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        return [fault["type"] for fault in error.errors(include_url=False)]
    return []


def _of_json(value: Any, kind: Any) -> Any:
    """A value of JSON as Python has it: lists are tuples, and a text is the member of its enum."""
    if isinstance(value, list):
        return tuple(_of_json(item, None) for item in value)
    plain = _parts(kind).kind
    if isinstance(plain, type) and issubclass(plain, StrEnum) and isinstance(value, str):
        return next((member for member in plain if member == value), value)
    return value


@functools.cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


@functools.cache
def _kinds(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)
