"""The page of the public interface, and what docstrings and signatures owe a caller that no linter judges."""

import ast
import re
import textwrap
from pathlib import Path

import griffe
import pytest

import qil_jax

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
BARE = re.compile(r"(?<![\[\w.])(np\.ndarray|jax\.Array|Array)\b(?!, )")
"""An array without its shape: jaxtyping names the kind of array first in a subscript, followed by a comma."""


def shapeless(annotation: object) -> bool:
    """Whether an annotation has an array of which nothing is said."""
    return bool(BARE.search(re.sub(r"\w+\[(np\.ndarray|jax\.Array|Array), ", "[", str(annotation))))


def raised(source: str) -> set[str]:
    """Names of the errors that leave a function from its own lines: neither raised anew nor caught around them."""
    tree = ast.parse(textwrap.dedent(source))
    caught = set()
    for block in (node for node in ast.walk(tree) if isinstance(node, ast.Try)):
        names = {ast.unparse(handler.type) for handler in block.handlers if handler.type is not None}
        inside = [node for statement in block.body for node in ast.walk(statement)]
        caught |= {node for node in inside if isinstance(node, ast.Raise) and error_name(node) in names}
    found = {error_name(node) for node in ast.walk(tree) if isinstance(node, ast.Raise) and node not in caught}
    return found - {None, "NotImplementedError", "AssertionError"}


def error_name(node: ast.Raise) -> str | None:
    """The class of an error that is made where it is raised."""
    return ast.unparse(node.exc.func) if isinstance(node.exc, ast.Call) else None


def documented_errors(thing: griffe.Object) -> set[str]:
    """The errors in the section "Raises" of a docstring."""
    parts = thing.docstring.parse("google") if thing.docstring else []
    entries = [entry for part in parts if part.kind is griffe.DocstringSectionKind.raises for entry in part.value]
    return {str(entry.annotation).rpartition(".")[2] for entry in entries}


def problems_of(thing: griffe.Object) -> list[str]:
    """What an object and its public members leave out; an `__init__` is documented by its class."""
    if thing.is_alias or (thing.name.startswith("_") and thing.name != "__init__"):
        return []
    found = []
    if isinstance(thing, griffe.Function):
        given = {parameter.name: parameter.annotation for parameter in thing.parameters}
        given["what it returns"] = thing.returns
        found += [f"{name} is an array without a shape" for name, annotation in given.items() if shapeless(annotation)]
        documented = thing.parent if thing.name == "__init__" and not thing.docstring else thing
        errors = raised(thing.source) - documented_errors(documented)
        found += [f"raises {name} and does not say so" for name in sorted(errors)]
    found = [f"{thing.path}: {problem}" for problem in found]
    if thing.is_class or thing.is_module:
        found += [problem for member in thing.members.values() for problem in problems_of(member)]
    return found


@pytest.fixture(scope="module")
def package() -> griffe.Object:
    return griffe.load("qil_jax", search_paths=[PAGE.parents[1]])


def test_public_names_give_shapes_and_errors(package):
    assert "inference" in package.members
    assert problems_of(package) == []


def test_the_page_names_modules_that_exist_and_all_that_the_package_offers(package):
    named = re.findall(r"^::: qil_jax\.(\S+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(named) == len({*named}) > 40
    assert all(package[module].is_module for module in named)
    assert {*named} >= {*qil_jax._HOMES.values()}


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def f(x: np.ndarray) -> int: ...", "x is an array without a shape"),
        ("def f(x: int) -> Array | None: ...", "what it returns is an array without a shape"),
        ('def f(x: int) -> int:\n    """A number."""\n    raise QilError("no")', "raises QilError and does not say so"),
        ('class C:\n    """A thing."""\n    def __init__(self):\n        raise QilError("no")', "raises QilError"),
    ],
)
def test_what_is_left_out_is_found(source, complaint):
    with griffe.temporary_visited_module(source) as module:
        (problem,) = problems_of(module)
        assert complaint in problem


def test_what_is_documented_passes():
    source = '''
def f(x: Float[np.ndarray, "b c"] | None) -> dict[str, Float[Array, " b"]]:
    """Sums over channels.

    Raises:
      QilError: if `x` is empty.
    """
    raise QilError("empty")
'''
    with griffe.temporary_visited_module(source) as module:
        assert problems_of(module) == []
