"""docs/api.md is what the docstrings say, and every public name on it has a sentence, shapes and errors."""

import ast
import re
import textwrap

import griffe
import pytest

from tools.write_api import PAGE, ROOT, SECTIONS, page

BARE = re.compile(r"(?<![\[\w.])(np\.ndarray|jax\.Array|Array)\b(?!, )")
"""An array without its shape: jaxtyping names the kind of array first in a subscript, followed by a comma."""


def shapeless(annotation: str) -> bool:
    """Whether an annotation has an array of which nothing is said."""
    return bool(BARE.search(re.sub(r"\w+\[(np\.ndarray|jax\.Array|Array), ", "[", annotation)))


def raised(source: str) -> set[str]:
    """Names of the errors that leave a function from its own lines: neither raised anew nor caught around them."""
    tree = ast.parse(textwrap.dedent(source))
    caught = set()
    for block in (node for node in ast.walk(tree) if isinstance(node, ast.Try)):
        names = {ast.unparse(handler.type) for handler in block.handlers if handler.type is not None}
        inside = [node for statement in block.body for node in ast.walk(statement)]
        caught |= {node for node in inside if isinstance(node, ast.Raise) and error_name(node) in names}
    found = {error_name(node) for node in ast.walk(tree) if isinstance(node, ast.Raise) and node not in caught}
    return found - {None}


def error_name(node: ast.Raise) -> str | None:
    """The class of an error that is made where it is raised."""
    return ast.unparse(node.exc.func) if isinstance(node.exc, ast.Call) else None


def sections(thing: griffe.Object, kind: griffe.DocstringSectionKind) -> list:
    parsed = thing.docstring.parse("google") if thing.docstring else []
    return [entry for section in parsed if section.kind is kind for entry in section.value]


def function_problems(function: griffe.Function, documented: griffe.Object) -> list[str]:
    """What a caller cannot learn; `documented` is the class where the function is its `__init__`."""
    problems = []
    for parameter in function.parameters:
        if parameter.name not in ("self", "cls") and not parameter.name.startswith("*"):
            if parameter.annotation is None:
                problems.append(f"{parameter.name} has no annotation")
            elif shapeless(str(parameter.annotation)):
                problems.append(f"{parameter.name} is an array without a shape")
    if function.returns is not None and shapeless(str(function.returns)):
        problems.append("returns an array without a shape")
    named = {
        str(entry.annotation).rpartition(".")[2] for entry in sections(documented, griffe.DocstringSectionKind.raises)
    }
    missing = raised(function.source) - named - {"NotImplementedError", "AssertionError"}
    return problems + [f"raises {name} and does not say so" for name in sorted(missing)]


def problems_of(thing: griffe.Object) -> list[str]:
    """Everything that the docstrings of an object and of its public members leave out."""
    if thing.is_alias or thing.name.startswith("_"):
        return []
    found = []
    if thing.is_class or thing.is_function:
        first = thing.docstring.value.strip().split("\n\n")[0] if thing.docstring else ""
        if not re.match(r"[A-Z0-9`\"].*[.:]$", first, re.DOTALL):
            found.append("has no sentence")
    if isinstance(thing, griffe.Function):
        found += function_problems(thing, thing)
    found = [f"{thing.path}: {problem}" for problem in found]
    if thing.is_class:
        init = thing.members.get("__init__")
        if isinstance(init, griffe.Function) and not init.is_alias:
            found += [
                f"{thing.path}: {problem}" for problem in function_problems(init, init if init.docstring else thing)
            ]
    if thing.is_class or thing.is_module:
        found += [problem for member in thing.members.values() for problem in problems_of(member)]
    return found


@pytest.fixture(scope="module")
def package() -> griffe.Module:
    return griffe.GriffeLoader(search_paths=[ROOT], docstring_parser=griffe.Parser.google).load("qil_jax")


def test_every_public_name_has_a_sentence_shapes_and_errors(package):
    assert problems_of(package) == []
    assert all(package[module].is_module for modules in SECTIONS.values() for module in modules)


def test_the_page_is_what_the_docstrings_say():
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def f(x: int) -> int:\n    ...", "has no sentence"),
        ('def f(x) -> int:\n    """A number."""', "x has no annotation"),
        ('def f(x: np.ndarray) -> int:\n    """A number."""', "x is an array without a shape"),
        ('def f(x: int) -> Array | None:\n    """A number."""', "returns an array without a shape"),
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
