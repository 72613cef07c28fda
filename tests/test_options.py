"""Options as dataclasses: what is no value of a type is named, in Python's words and in those of JSON."""

import argparse
import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest
from annotated_types import Ge, Interval, MultipleOf

from qil_jax.choices import Edges
from qil_jax.command_line import Parser, add_options, flag
from qil_jax.options import (
    Number,
    ShortText,
    Text,
    expected,
    option,
    options_of,
    problems_in,
    problems_of,
    read_fields,
    recorded,
    value_problems,
)

ROOT = Path(__file__).resolve().parents[1]
EDGES = "refined, plain"
COUNT = Annotated[int, Interval(ge=1, le=9)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """Options of all types."""

    side: Annotated[int, Ge(32), MultipleOf(32)] | None = option(None, "side", unset="the file's")
    count: COUNT = option(3, "how many", decides=False)
    scale: Number = option(1.0, "how large")
    edges: Edges = option(Edges.PLAIN, "which edges")
    title: ShortText | None = option(None, "what it is called", unset="nothing")
    framed: bool = option(False, "with a frame", later=True)
    other: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sized(Drawing):
    """A drawing whose side is known."""

    side: int = dataclasses.field()


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        (int, True, "must be an integer, got True"),
        (int, 2.0, "must be an integer, got 2.0"),
        (int, "2", "must be an integer, got '2'"),
        (int, None, "must be an integer, got None"),
        (Annotated[int, Ge(1)], 0, "must be at least 1, got 0"),
        (COUNT, 10, "must be from 1 to 9, got 10"),
        pytest.param(COUNT, 10**5000, "must be from 1 to 9, got int of thousands of digits", id="a huge integer"),
        (Annotated[int, Ge(32), MultipleOf(32)], 33, "must be a multiple of 32, got 33"),
        (Annotated[int, Ge(32), MultipleOf(32)], 0, "must be a multiple of 32, got 0"),
        (Annotated[int, Ge(32), MultipleOf(32)], "a", "must be a multiple of 32, got 'a'"),
        (Number, float("nan"), "must be a finite number, got nan"),
        (Number, float("inf"), "must be a finite number, got inf"),
        pytest.param(Number, 10**5000, "must be a finite number, got int of thousands of digits", id="a huge number"),
        (Number, True, "must be a finite number, got True"),
        (Number, "1", "must be a finite number, got '1'"),
        (bool, 1, "must be True or False, got 1"),
        (Edges, "plain", f"must be one of {EDGES} of qil_jax.choices.Edges, got 'plain'"),
        (Text, 7, "must be text, got 7"),
        (Text | None, 7, "must be text or None, got 7"),
        (Text, "\ud800", "has half of a surrogate pair, \\ud800: give text, in UTF-8 on a command line"),
        (ShortText, "x" * 20_001, "has 20001 characters, 20000 at most: shorten it"),
    ],
)
def test_what_is_no_value_is_named(kind, value, says):
    assert value_problems("it", value, kind) == [f"it {says}"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [(int, -3), (Number, 2), (Number, 2.5), (Text | None, None), (Text, "a"), (Edges, Edges.PLAIN), (bool, False)],
)
def test_values_pass(kind, value):
    assert value_problems("it", value, kind) == []


def test_all_problems_of_an_instance_are_named_together():
    drawing = Drawing()
    for name, value in {"side": 33, "count": 0, "edges": "plain", "framed": "no", "title": None}.items():
        object.__setattr__(drawing, name, value)
    assert [problem.partition(" must")[0] for problem in problems_of(drawing, flag)] == [
        "--side",
        "--count",
        "--edges",
        "--framed",
    ]
    assert problems_in(Drawing, {"scale": "1"}) == ["scale must be a finite number, got '1'"]
    assert problems_of(Drawing()) == []


def test_a_narrowed_option_is_that_option():
    assert options_of(Sized) == options_of(Drawing) and next(iter(options_of(Sized))) == "side"
    (problem,) = problems_in(Sized, {"side": None})
    assert problem == "side must be an integer, got None"


def test_what_a_result_records():
    values = {"side": None, "scale": 1.0, "edges": "plain", "title": None}
    assert recorded(Drawing()) == values and type(recorded(Drawing())["edges"]) is str
    assert recorded(Drawing(framed=True, count=2)) == {**values, "framed": True}


def test_a_command_line_of_options(capsys):
    parser = Parser(prog="draw")
    add_options(parser.add_argument, Drawing, ("side", "scale", "edges", "title", "framed"), scale="1 is usual")
    assert vars(parser.parse_args([])) == dict.fromkeys(("side", "scale", "edges", "title", "framed"))
    given = parser.parse_args(["--side", "64", "--scale", "2", "--edges", "plain", "--framed", "--title", "x"])
    assert given == argparse.Namespace(side=64, scale=2.0, edges=Edges.PLAIN, framed=True, title="x")
    assert given.edges is Edges.PLAIN
    help = " ".join(parser.format_help().split())
    for words in ("side (default: the file's)", "how large; 1 is usual (default 1.0)", "{refined,plain}", "a frame"):
        assert words in help
    with pytest.raises(SystemExit):
        parser.parse_args(["--edges", "soft"])
    assert f"argument --edges: invalid choice: 'soft' (choose from {EDGES})" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Annotated[int, Interval(ge=1, le=1000)], "a whole number from 1 to 1000"),
        (Annotated[int, Ge(1)], "a whole number of at least 1"),
        (Annotated[int, Ge(32), MultipleOf(32)] | None, "a multiple of 32"),
        (Annotated[Number, Interval(gt=0, le=1e9)], "a number above 0 and at most 1e+09"),
        (tuple[Number, ...], "a list, each of it a number"),
        (tuple[int, int], "a list of 2, each of it a whole number"),
        (Mapping[str, Annotated[int, Ge(1)]], "an object, each value of it a whole number of at least 1"),
        (Edges, f"one of {EDGES}"),
        (bool, "true or false"),
        (Text, "a text"),
    ],
)
def test_types_in_the_words_of_json(kind, words):
    assert expected(kind) == words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Keys of a file."""

    shape: tuple[Annotated[int, Ge(1)], ...]
    edges: Edges = Edges.PLAIN
    scale: Number | None = None
    ranks: Mapping[str, Annotated[int, Ge(1)]] = dataclasses.field(default_factory=dict)


def test_json_is_read_by_the_types():
    problems: list[str] = []
    values = {"shape": [1, 2], "edges": "refined", "scale": 2, "ranks": {"a": 3}, "more": 1}
    found = read_fields(Config, values, problems)
    assert problems == [] and found == {"shape": (1, 2), "edges": Edges.REFINED, "scale": 2.0, "ranks": {"a": 3}}
    assert type(found["scale"]) is float and found["edges"] is Edges.REFINED


def test_every_field_of_json_that_does_not_fit_is_named():
    problems: list[str] = []
    values = {"edges": ["plain"], "scale": "2", "ranks": {"a": 0}}
    assert read_fields(Config, values, problems, prefix="part: ") == {}
    assert problems == [
        "part: 'shape' is missing: copy it from the released config.json",
        f"part: edges = ['plain']: must be one of {EDGES}",
        "part: scale = '2': must be a number",
        "part: ranks = {'a': 0}: must be an object, each value of it a whole number of at least 1",
    ]


def test_pydantic_is_imported_when_something_is_checked():
    code = "import sys, qil_jax.options; print('pydantic' in sys.modules); "
    code += "qil_jax.options.value_problems('x', 1, int); print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False", "True"]
