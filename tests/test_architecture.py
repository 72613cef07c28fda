"""The rules of the architecture: that import-linter and ruff find what breaks them, and the few that neither knows."""

import ast
import graphlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE = "qil_jax"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]

MAX_FILE, MAX_ENTRY = 600, 80
WRITTEN = "summary.md"
"""The one document that a program writes: an evaluation's report."""
FORWARDED = ("place", "how", "options")
"""Names of dictionaries of keyword arguments, which neither search nor a type checker follows."""
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~)}>*-])/(home|root|work|tmp|Users|mnt|opt|data|srv)/\w|\b[A-Z]:\\\\?\w")


LAYERS = "rooms import rooms below them"
ARRAYS = "models know arrays only"
ALONE = "the package needs no torch, no pickles and no programs"
BAD_IMPORTS = [
    ("models", "from qil_jax.mesh import Rules", LAYERS),
    ("flow", "import qil_jax.mesh.rules", LAYERS),
    ("mesh", "from qil_jax import weights", LAYERS),
    ("export", "from qil_jax.inference.request import Request", LAYERS),
    ("weights", "from qil_jax.inference import pipeline", LAYERS),
    ("inference", "from qil_jax.training import step", LAYERS),
    ("training", "from qil_jax.planning import chips", LAYERS),
    ("documents", "from qil_jax.scenes import scene", LAYERS),
    ("utils.py", "import math", LAYERS),
    ("evaluation.layers.py", "from qil_jax.models.rgba_vae import RGBAVAE", "what knows pictures knows no network"),
    ("encoders", "from qil_jax.layers import compositing", "what knows networks knows no picture"),
    ("editing", "from qil_jax.export.result import write_result", "data and training know no results"),
    ("scenes", "from qil_jax.export.result import write_result", "data and training know no results"),
    ("inference", "from qil_jax.records.record import Record", "what makes, edits and shows results knows no data"),
    ("scenes", "import qil_jax.loader.plan", "only training loads batches"),
    ("app", "from qil_jax.models.axes import Axis", "the app reaches networks through inference"),
    ("kernels", "from qil_jax.weights import strict", "the maths and the root's modules stand for themselves"),
    ("programs.py", "from qil_jax import command_line", "the maths and the root's modules stand for themselves"),
    ("__init__.py", "import qil_jax.errors", "the package itself imports no room"),
    ("mesh", "import qil_jax", "imports name a room"),
    ("inference", "import torch.nn", ALONE),
    ("weights", "import pickle", ALONE),
    ("weights", "from tools import convert", ALONE),
    ("models", "def f():\n    import safetensors", ARRAYS),
    ("models", "import json", ARRAYS),
    ("models", "from pathlib import Path", ARRAYS),
]
"""Room or module, a line in it, and the contract that it breaks."""


def program(name: str, *arguments: str, folder: Path = ROOT, source: str | None = None) -> str:
    """What a linter reports."""
    command = [Path(sys.executable).with_name(name), *arguments]
    return subprocess.run(command, cwd=folder, input=source, capture_output=True, text=True, check=False).stdout


def importer(number: int) -> str:
    """The module with a bad import: a new one in a room, or one of the root."""
    place = BAD_IMPORTS[number][0]
    return place.removesuffix(".py") if place.endswith(".py") else f"{place}.bad_{number}"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict[str, str]:
    """What import-linter says of a copy of the package with all bad imports, by contract."""
    folder = tmp_path_factory.mktemp("spoilt")
    shutil.copytree(ROOT / HOUSE, folder / HOUSE, ignore=shutil.ignore_patterns("demonstration", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for number, (_, line, _) in enumerate(BAD_IMPORTS):
        with (folder / HOUSE / f"{importer(number).replace('.', '/')}.py").open("a") as file:
            file.write(f"\n{line}\n")
    broken = program("lint-imports", "--no-cache", folder=folder).partition("Broken contracts\n")[2]
    _, *parts = re.split(r"\n(.+)\n-+\n", broken)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("number", range(len(BAD_IMPORTS)), ids=lambda number: " in ".join(BAD_IMPORTS[number][1::-1]))
def test_a_bad_import_is_found(report, number):
    module = f"{HOUSE}.{importer(number)}".removesuffix(".__init__")
    assert re.search(rf"- +{module}( ->|$)", report[BAD_IMPORTS[number][2]], re.MULTILINE)


def test_every_contract_is_broken_by_a_bad_import(report):
    assert {*report} == {contract["name"] for contract in SETTINGS["importlinter"]["contracts"]}


def test_no_modules_import_one_another_in_a_circle():
    graph = grimp.build_graph(HOUSE, cache_dir=None)

    def order() -> None:
        graphlib.TopologicalSorter({m: graph.find_modules_directly_imported_by(m) for m in graph.modules}).prepare()

    order()
    graph.add_import(importer=f"{HOUSE}.errors", imported=f"{HOUSE}.files")
    with pytest.raises(graphlib.CycleError):
        order()


@pytest.mark.parametrize(
    ("path", "source", "rule", "found"),
    [
        ("qil_jax/models/x.py", "from jax.sharding import Mesh", "TID251", True),
        ("qil_jax/models/x.py", "from jax import sharding", "TID251", True),
        ("qil_jax/mesh/x.py", "from jax.sharding import Mesh", "TID251", False),
        ("qil_jax/inference/x.py", "from .prompts import PREFIX", "TID252", True),
        ("tools/x.py", "def f(a, b, *, c, d, e, f, g, h, i): ...", "PLR0913", True),
        ("tools/x.py", "class C:\n    def f(self, a, b, *, c, d, e, f, g, h): ...", "PLR0913", False),
        ("tools/x.py", "def f():\n" + "    x = 1\n" * 51, "PLR0915", True),
        ("tools/x.py", "def f():\n" + "    x = 1\n" * 50, "PLR0915", False),
        ("tools/x.py", "def f(x):\n" + "    if x:\n        pass\n" * 10, "C901", True),
        ("qil_jax/x.py", "def f(x: int) -> int: ...", "D103", True),
        ("qil_jax/x.py", "class C: ...", "D101", True),
        ("qil_jax/x.py", "class C:\n    def f(self) -> int: ...", "D102", True),
        ("tools/x.py", "def f(x): ...", "D103", False),
        ("qil_jax/x.py", 'def f(x: int) -> int:\n    """A number"""', "D415", True),
        ("qil_jax/x.py", 'def f(x: int) -> int:\n    """number of things."""', "D403", True),
        ("qil_jax/x.py", 'def f(x) -> int:\n    """A number."""', "ANN001", True),
    ],
)
def test_ruff_judges_each_folder_by_its_rules(path, source, rule, found):
    shown = program("ruff", "check", "--output-format=concise", f"--stdin-filename={path}", "-", source=source)
    assert (f" {rule} " in shown) is found


def public_frames(source: str) -> list[str]:
    """Public names that say frame, where the field says layer or composite."""
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, defined)]
    return [name for name in names if not name.startswith("_") and re.search(r"frames?(?![a-z])|Frame", name)]


def split_pairs(source: str) -> list[str]:
    """Functions that take a mesh and rules apart, and calls that unpack a dictionary of arguments of ours.

    What a function takes by ** itself, such as the options of a class of argparse, it may hand on.
    """
    found, own, tree = [], set(), ast.parse(source)
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    for function in (node for node in ast.walk(tree) if isinstance(node, functions)):
        taken = function.args
        if {"mesh", "rules"} <= {a.arg for a in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)}:
            found.append(getattr(function, "name", "lambda"))
        if taken.kwarg:
            own |= {(id(node), taken.kwarg.arg) for node in ast.walk(function)}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        names = [word.value.id for word in call.keywords if word.arg is None and isinstance(word.value, ast.Name)]
        found += [f"**{name}" for name in names if name in FORWARDED and (id(call), name) not in own]
    return found


def python_files(*folders: str) -> list[Path]:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(files) + sorted(ROOT.glob("*.py"))


def package_files() -> list[Path]:
    return [path for path in python_files(HOUSE) if path.is_relative_to(ROOT / HOUSE)]


def gathered(check, files: list[Path]) -> str:
    found = [(path.relative_to(ROOT), problem) for path in files for problem in check(path)]
    return "\n".join(f"{path}: {problem}" for path, problem in found)


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def too_long(path: Path, source: str) -> bool:
    """Whether a file, by its path in the repository, has more lines than it may."""
    return source.count("\n") > (MAX_ENTRY if path.parent == Path() else MAX_FILE)


def test_files_stay_short():
    files = [path.relative_to(ROOT) for path in python_files(HOUSE, "tools", "tests", "configs")]
    assert Path("infer.py") in files
    assert not [path for path in files if too_long(path, text(ROOT / path))]
    assert [too_long(Path("tools/x.py"), "\n" * lines) for lines in (600, 601)] == [False, True]
    assert [too_long(Path("infer.py"), "\n" * lines) for lines in (80, 81)] == [False, True]


def test_documents_that_are_referred_to_exist():
    files = [*python_files(HOUSE, "tools", "configs"), *sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
    there = {path.name for folder in (ROOT, ROOT / "docs") for path in folder.glob("*.md")} | {WRITTEN}
    assert len(there) > 8
    assert not gathered(lambda path: {*re.findall(r"[\w-]+\.md\b", text(path))} - there, files)


def test_no_absolute_paths():
    others = [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "README.md", ROOT / ".ci" / "run"]
    files = [*python_files(HOUSE, "tools", "configs"), *others, *sorted((ROOT / "docs").glob("*.md"))]
    assert not gathered(lambda path: [match[0] for match in ABSOLUTE_PATH.finditer(text(path))], files)


def test_no_public_name_says_frame():
    assert not gathered(lambda path: public_frames(text(path)), package_files())


def test_mesh_and_rules_travel_as_one_value():
    assert not gathered(lambda path: split_pairs(text(path)), python_files(HOUSE, "tools"))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f(x, mesh, *, rules): ...", ["f"]),
        ("async def f(mesh, rules, /): ...", ["f"]),
        ("f = lambda mesh, rules: 0", ["lambda"]),
        ("def f(mesh): ...\ndef g(rules): ...", []),
        ("f(1, **place)\ng(**how, x=1)\nh(**options)", ["**place", "**how", "**options"]),
        ("f(**{**how})\ng(*place)\nx = 2 ** how", []),
        ("def f(**options): g(**options)", []),
        ("def f(**options): g(**how)", ["**how"]),
    ],
)
def test_pairs_that_are_apart_are_found(source, found):
    assert split_pairs(source) == found


def test_every_folder_of_modules_is_packaged():
    bare = {path.parent for path in package_files()} - {
        path.parent for path in package_files() if path.stem == "__init__"
    }
    assert not bare, "folders without __init__.py are left out of the wheel"
    assert SETTINGS["setuptools"]["packages"]["find"]["include"] == [f"{HOUSE}*"]


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
