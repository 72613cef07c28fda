"""The rules of the architecture that a machine can check: who imports whom, and how long things get."""

import ast
import graphlib
import re
import statistics
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE = "qil_jax"

BASE = {"flow", "mesh", "models"}
PLAIN = {"command_line", "compilation_cache", "errors", "files", "host_memory", "identity", "launch", "limits", "links"}
PLAIN |= {"extras", "programs"}
"""Modules of the root that know nothing of the rooms."""
MAY_IMPORT = {
    "errors": set(),
    "command_line": set(),
    "compilation_cache": set(),
    "extras": {"errors"},
    "host_memory": set(),
    "limits": set(),
    "files": {"errors"},
    "identity": set(),
    "links": set(),
    "launch": {"errors", "links", "programs"},
    "programs": {"errors"},
    "shipped": set(),
    "models": {"errors"},
    "flow": {"errors", "limits", "models"},
    "mesh": {"errors", "models"},
    "kernels": {"errors", "mesh", "models"},
    "layers": PLAIN,
    "records": {*PLAIN, "layers"},
    "documents": {*PLAIN, "layers", "records"},
    "scenes": {*PLAIN, "layers", "records"},
    "loader": {*PLAIN, "layers", "records"},
    "weights": {*PLAIN, *BASE},
    "encoders": {*PLAIN, *BASE, "weights"},
    "evaluation": {*PLAIN, "layers", "records"},
    "export": {*PLAIN, "layers"},
    "editing": {*PLAIN, "layers"},
    "viewer": {*PLAIN, "export", "layers"},
    "inference": {*PLAIN, *BASE, "encoders", "export", "kernels", "layers", "shipped", "weights"},
    "app": {*PLAIN, "encoders", "export", "inference", "layers", "viewer", "weights"},
    "training": {*PLAIN, *BASE, "encoders", "kernels", "layers", "loader", "records", "weights"},
}
"""Room to the rooms below it; a room may always import itself. Entry points and tools may import every room."""

FOR_MODELS = {"__future__", "collections", "dataclasses", "enum", "flax", "functools", "jax", "jaxtyping", "math"}
FOR_MODELS |= {"numpy", "types", "typing"}
"""All that models/ may import from outside: nothing that knows a file."""

NOT_IN_MODELS = {"jax.sharding", "jax.experimental.mesh_utils", "jax.experimental.shard_map"}
NEVER = {
    "torch": "torch is for tests and tools/ only",
    "diffusers": "diffusers is for tests and tools/ only",
    "transformers": "transformers is for tests and tools/ only",
    "pickle": "weights are safetensors, never pickles",
    "dill": "weights are safetensors, never pickles",
    "joblib": "weights are safetensors, never pickles",
    "tests": "the package must work without its tests",
    "tools": "imports run downwards",
    "infer": "imports run downwards",
    "train": "imports run downwards",
}
MAX_FILE, MAX_FUNCTION, MAX_ARGUMENTS, MAX_ENTRY = 400, 60, 8, 80
MEDIAN_FILE = 110
WRITTEN = "summary.md"
"""The one document that a program writes: an evaluation's report."""
OTHER_WORDS = {
    "chance": "rng",
    "moments": "opt_state",
    "moving": "is_target",
    "told": "metrics, or what it holds",
    "turns": "rotary",
    "Course": "LRSchedule",
    "Parts": "TrainingRun",
    "Perception": "PerceptualLoss",
}
"""Private words to the field's own."""
DEBTS: set[str] = set()
"""What breaks the limits today and is to be put right. Each must still be true: a debt that is paid leaves the list."""

ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~)}>*-])/(home|root|work|tmp|Users|mnt|opt|data|srv)/\w|\b[A-Z]:\\\\?\w")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "." * node.level + (node.module or "")
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def import_problems(room: str, source: str) -> list[str]:
    """What is wrong with the imports of one module of a room."""
    problems = []
    if room not in MAY_IMPORT:
        return [f"room '{room}' is not in MAY_IMPORT: say what it may import"]
    for line, name in imported(ast.parse(source)):
        top, *rest = name.split(".")
        if not top:
            problems.append(f"{line}: relative import '{name}': write it out")
        elif top in NEVER:
            problems.append(f"{line}: '{name}': {NEVER[top]}")
        elif top == HOUSE and (not rest or rest[0] not in MAY_IMPORT):
            problems.append(f"{line}: '{name}' names no room")
        elif top == HOUSE and rest[0] != room and rest[0] not in MAY_IMPORT[room]:
            problems.append(f"{line}: {room} may not import {rest[0]}, it may import {sorted(MAY_IMPORT[room])}")
        elif room == "models" and top != HOUSE and top not in FOR_MODELS:
            problems.append(f"{line}: models know arrays only, not '{name}'")
        elif room == "models" and any(within(name, module) for module in NOT_IN_MODELS):
            problems.append(f"{line}: models know no mesh: '{name}'")
    return problems


def length_problems(source: str, *, limit: int = MAX_FILE) -> list[str]:
    """Files and functions that have grown too long, and functions of too many arguments."""
    lines = source.count("\n")
    problems = [f"{lines} lines, {limit} at most"] if lines > limit else []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        size = (node.end_lineno or node.lineno) - node.lineno + 1
        if size > MAX_FUNCTION:
            problems.append(f"{node.name} has {size} lines, {MAX_FUNCTION} at most")
        args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = len([a for a in args if a.arg not in ("self", "cls")])
        if count > MAX_ARGUMENTS:
            problems.append(f"{node.name} has {count} arguments, {MAX_ARGUMENTS} at most")
    return problems


def public_frames(source: str) -> list[str]:
    """Public names that say frame, where the field says layer or composite."""
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, defined)]
    return [name for name in names if not name.startswith("_") and re.search(r"frames?(?![a-z])|Frame", name)]


def python_files(*folders: str) -> list[Path]:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(files) + sorted(ROOT.glob("*.py"))


def package_files() -> list[Path]:
    return [path for path in python_files(HOUSE) if path.is_relative_to(ROOT / HOUSE)]


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / HOUSE).parts[0].removesuffix(".py")


def gathered(check, files: list[Path]) -> str:
    found = [(path.relative_to(ROOT), problem) for path in files for problem in check(path)]
    return "\n".join(f"{path}: {problem}" for path, problem in found)


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_imports_run_downwards():
    files = [path for path in package_files() if path.parent != ROOT / HOUSE or path.name != "__init__.py"]
    assert len(files) > 30
    assert not gathered(lambda path: import_problems(room_of(path), text(path)), files)


def test_the_package_root_imports_no_room():
    assert not [name for _, name in imported(ast.parse(text(ROOT / HOUSE / "__init__.py"))) if within(name, HOUSE)]


def module_of(path: Path) -> str:
    """The dotted name of a module of the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Module to those of the set that it imports, inside functions too."""
    graph = {}
    for module, source in sources.items():
        names = [name for _, name in imported(ast.parse(source))]
        found = {name if name in sources else name.rpartition(".")[0] for name in names}
        graph[module] = {name for name in found if name in sources and name != module}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle; empty if there is none."""
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_one_another_in_a_circle():
    graph = import_graph({module_of(path): text(path) for path in package_files()})
    assert len(graph) > 100 and sum(map(len, graph.values())) > 300
    assert circle(graph) == []


def test_a_circle_of_modules_is_found():
    sources = {
        "qil_jax.models.a": "from qil_jax.models.b import f",
        "qil_jax.models.b": "def f():\n    from qil_jax.models import a",
        "qil_jax.models.c": "import math",
    }
    assert set(circle(import_graph(sources))) == {"qil_jax.models.a", "qil_jax.models.b"}
    sources["qil_jax.models.b"] = "from qil_jax.models import c"
    assert circle(import_graph(sources)) == []


def test_rules_have_no_circle():
    assert circle(MAY_IMPORT) == []
    assert all(room in MAY_IMPORT for rooms in MAY_IMPORT.values() for room in rooms)


def test_files_functions_and_argument_lists_stay_short():
    files = python_files(HOUSE, "tools", "tests", "configs")
    found = gathered(lambda path: length_problems(text(path)), files).splitlines()
    assert {*found} == DEBTS


def test_the_median_file_is_short():
    files = [path for path in python_files(HOUSE, "tools", "tests", "configs") if text(path).strip()]
    assert statistics.median(text(path).count("\n") for path in files) <= MEDIAN_FILE


def other_words(source: str) -> set[str]:
    """Identifiers of a module for which the field has another word."""
    tree = ast.parse(source)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return names & set(OTHER_WORDS)


def test_names_are_the_words_of_the_field():
    assert not gathered(lambda path: other_words(text(path)), python_files(HOUSE, "tools", "tests", "configs"))
    assert other_words("def f(chance): return self.moving") == {"chance", "moving"}


def test_documents_that_are_referred_to_exist():
    files = [*python_files(HOUSE, "tools", "configs"), *sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
    there = {path.name for folder in (ROOT, ROOT / "docs") for path in folder.glob("*.md")} | {WRITTEN}
    assert len(there) > 8
    assert not gathered(lambda path: {*re.findall(r"[\w-]+\.md\b", text(path))} - there, files)


def test_entry_points_stay_short():
    assert (ROOT / "infer.py").is_file()
    assert not gathered(lambda path: length_problems(text(path), limit=MAX_ENTRY), sorted(ROOT.glob("*.py")))


def test_no_absolute_paths():
    others = [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "README.md", ROOT / ".ci" / "run"]
    files = [*python_files(HOUSE, "tools", "configs"), *others, *sorted((ROOT / "docs").glob("*.md"))]
    assert not gathered(lambda path: [match[0] for match in ABSOLUTE_PATH.finditer(text(path))], files)


def test_no_public_name_says_frame():
    assert not gathered(lambda path: public_frames(text(path)), package_files())


def test_every_folder_of_modules_is_packaged():
    bare = {path.parent for path in package_files()} - {
        path.parent for path in package_files() if path.stem == "__init__"
    }
    assert not bare, "folders without __init__.py are left out of the wheel"
    find = tomllib.loads(text(ROOT / "pyproject.toml"))["tool"]["setuptools"]["packages"]["find"]
    assert find["include"] == [f"{HOUSE}*"]


@pytest.mark.parametrize(
    ("room", "line", "complaint"),
    [
        ("models", "from qil_jax.mesh import Rules", "models may not import mesh"),
        ("models", "def f():\n    import safetensors", "models know arrays only"),
        ("models", "import json", "models know arrays only"),
        ("models", "from pathlib import Path", "models know arrays only"),
        ("models", "from jax.sharding import Mesh", "models know no mesh"),
        ("models", "from jax import sharding", "models know no mesh"),
        ("flow", "import qil_jax.mesh.rules", "flow may not import mesh"),
        ("mesh", "from qil_jax import weights", "mesh may not import weights"),
        ("export", "from qil_jax.inference.request import Request", "export may not import inference"),
        ("editing", "from qil_jax.export.result import write_result", "editing may not import export"),
        ("evaluation", "from qil_jax.models.rgba_vae import RGBAVAE", "evaluation may not import models"),
        ("weights", "from qil_jax.inference import pipeline", "weights may not import inference"),
        ("inference", "from qil_jax.training import step", "inference may not import training"),
        ("inference", "from .prompts import PREFIX", "relative import"),
        ("inference", "import torch.nn", "torch is for tests"),
        ("weights", "import pickle", "never pickles"),
        ("weights", "from tools import convert", "imports run downwards"),
        ("mesh", "import qil_jax", "names no room"),
        ("mesh", "from qil_jax.utils import helper", "names no room"),
        ("utils", "import math", "not in MAY_IMPORT"),
    ],
)
def test_a_bad_import_is_found(room, line, complaint):
    (problem,) = import_problems(room, line)
    assert complaint in problem


def test_good_imports_pass():
    good = "import jax\nfrom qil_jax.models.axes import Axis\nfrom qil_jax.weights import load_model\nimport PIL.Image"
    assert import_problems("inference", good) == []
    assert import_problems("models", "import numpy as np\nfrom qil_jax.models.axes import Axis") == []


def test_long_things_are_found():
    assert length_problems("x = 1\n" * 401) == ["401 lines, 400 at most"]
    assert length_problems("x = 1\n" * 400) == []
    assert "61 lines" in length_problems("def f():\n" + "    x = 1\n" * 60)[0]
    assert length_problems("def f():\n" + "    x = 1\n" * 59) == []
    assert "9 arguments" in length_problems("def f(a, b, *, c, d, e, f, g, h, i): ...")[0]
    assert length_problems("class C:\n    def f(self, a, b, *, c, d, e, f, g, h): ...") == []


@pytest.mark.parametrize("line", ["p = '|work|x'", "see `|tmp|out`", "cp (|home|me|x)", "p = 'C:\\\\Users'"])
def test_absolute_paths_are_found(line):
    """A bar stands for a slash here, so that this file holds no such path itself."""
    assert ABSOLUTE_PATH.search(line.replace("|", "/"))


@pytest.mark.parametrize(
    "line", ["DST/data/x", "https://host/data/x", "a/b", "#!/usr/bin/env bash", "fsdp/data", "x: y"]
)
def test_other_slashes_are_none(line):
    assert not ABSOLUTE_PATH.search(line)


def test_public_frames_are_found():
    assert public_frames("def drop_frames(): ...\nclass FirstFrame: ...\ndef _frame(): ...\ndef framework(): ...") == [
        "drop_frames",
        "FirstFrame",
    ]
