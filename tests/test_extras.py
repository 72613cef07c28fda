"""Without an optional package, each program that needs it says at once which extra brings it."""

import ast
import importlib.metadata
import importlib.util
import re
import shlex
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from test_command_lines import ROOT, file_of, programs

from qil_jax.cli.__main__ import main_of as verb_main
from qil_jax.cli.commands import COMMANDS
from qil_jax.errors import QilError
from qil_jax.extras import EXTRA_OF, require
from qil_jax.programs import called, ended
from qil_jax.records.sources import open_source
from qil_jax.training.config_file import load_experiment
from qil_jax.training.start import require_inputs

TORCH = "torch, diffusers, transformers"
BUILD = "tensorflow_datasets, apache_beam, imagehash, scipy, openai"
REFUSALS = {
    "train missing.py --wandb project": f"{called('train --wandb')} needs wandb: pip install 'qil_jax[track]'",
    "train missing.py --out gs://bucket/run": "gs://bucket/run needs gcsfs: pip install 'qil_jax[gcs]'",
    "app --port 0": f"{called('app')} needs gradio: pip install 'qil_jax[ui]'",
    "tools/bench app": "tools/bench app needs gradio: pip install 'qil_jax[ui]'",
    "tools/bench models": f"tools/bench models needs {TORCH}: pip install 'qil_jax[parity]'",
    "tools/bench train": f"tools/bench train needs {TORCH}: pip install 'qil_jax[parity]'",
    "tools/bench caption": f"tools/bench caption needs {TORCH}: pip install 'qil_jax[parity]'",
    "tools/bench data": "tools/bench data needs tensorflow_datasets, apache_beam: pip install 'qil_jax[data]'",
    "build-dataset missing --out x": f"{called('build-dataset')} needs {BUILD}: pip install 'qil_jax[data]'",
    "build-dataset gs://bucket/documents --out x": (
        f"{called('build-dataset')} needs {BUILD}, gcsfs: pip install 'qil_jax[data,gcs]'"
    ),
    "cache-latents {records} --checkpoint missing --out x --config {config}": (
        "{records} needs tensorflow_datasets: pip install 'qil_jax[data]'"
    ),
    "tools/demo_training.py": (
        "demo_training.py needs tensorflow_datasets, apache_beam, resvg_py: pip install 'qil_jax[data]'"
    ),
    "evaluate layers missing --out x": f"{called('evaluate')} needs scipy: pip install 'qil_jax[data]'",
    "evaluate reconstruction missing --out x": f"{called('evaluate')} needs scipy: pip install 'qil_jax[data]'",
    "export missing --to pptx --native-text": (
        f"{called('export --native-text')} needs rapidocr, onnxruntime, matplotlib: pip install 'qil_jax[ocr]'"
    ),
    "fetch-assets --out x": "openclipart-svg-0.18 needs resvg_py: pip install 'qil_jax[data]'",
    "tools/fuzz app": "tools/fuzz app needs gradio: pip install 'qil_jax[ui]'",
    "tools/fuzz commands": "tools/fuzz commands needs tensorflow_datasets, apache_beam: pip install 'qil_jax[data]'",
    "tools/fuzz documents": f"tools/fuzz documents needs {BUILD}: pip install 'qil_jax[data]'",
    "tools/fuzz kills": f"tools/fuzz kills needs {BUILD}: pip install 'qil_jax[data]'",
    "tools/make_demo_checkpoint.py x --captions {records}": (
        "{records} needs tensorflow_datasets: pip install 'qil_jax[data]'"
    ),
    "make-scenes --count 0 --out x": (
        f"{called('make-scenes')} needs tensorflow_datasets, apache_beam: pip install 'qil_jax[data]'"
    ),
    "plan infer --topology v5e:2x4 --mesh tensor=8": "v5e:2x4 needs libtpu: pip install 'qil_jax[plan]'",
    "plan train --topology h100:8 --config missing.py": ("h100:8 needs jax_cuda12_plugin: pip install 'qil_jax[cuda]'"),
    "tools/pods": "tools/pods needs libtpu: pip install 'qil_jax[plan]'",
    "show-batch {records}": "{records} needs tensorflow_datasets: pip install 'qil_jax[data]'",
    "validate missing --numerics": (
        f"{called('validate --numerics')} needs {TORCH}, accelerate: pip install 'qil_jax[parity]'"
    ),
}
"""Command lines, most of them wrong in other ways, too, and all that is printed where nothing optional is installed."""
WITHIN = {"cv2": "rapidocr", "fsspec": "etils", "pydantic_core": "pydantic"}
WITHIN |= dict.fromkeys(("anyio", "h11", "httpx", "starlette", "uvicorn"), "gradio")
"""Modules that come with another."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SPOKEN = {
    r"(?m)^ *qil app": "ui",
    r"(?m)^ *qil (build-dataset|cache-latents|evaluate|make-scenes|show-batch)": "data",
    r"python tools/fuzz (commands|documents|kills)": "data",
    r"(?m)^ *(qil plan|python tools/pods)": "plan",
    r"tools/bench (caption|models|train)": "parity",
    r"--numerics": "parity",
    r"--native-text": "ocr",
    r"--wandb": "track",
    r"--out gs://": "gcs",
}
"""Commands on pages, and the extra that these need."""
BESIDE = {"tokamax"}
"""Optional modules that no extra brings, since they ask for an accelerator's JAX; kernels/plan.py refuses them."""


@pytest.fixture
def plain(monkeypatch) -> None:
    """An environment without any optional module."""
    for name in EXTRA_OF:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def records(tmp_path) -> Path:
    """What is seen of a dataset before it is read."""
    folder = tmp_path / "records" / "layered_dataset" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").touch()
    return tmp_path / "records"


def main_of(program: str):
    """The function `main` of a verb of `qil`, or of a program's file or folder."""
    if program in COMMANDS:
        return verb_main(program)
    name = program.removesuffix(".py").replace("/", ".")
    return importlib.import_module(name if program.endswith(".py") else f"{name}.__main__").main


@pytest.mark.parametrize("line", REFUSALS, ids=lambda line: line.replace("{", "").replace("}", ""))
def test_the_missing_extra_is_all_that_is_said(line, plain, records, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    places = {"records": records, "config": ROOT / "configs" / "small" / "finetune_lora.py"}
    program, *words = shlex.split(line.format(**places))
    try:
        status = ended(main_of(program), words)
    except SystemExit as end:
        status = end.code
    assert (status, *capfd.readouterr()) == (2, "", f"error: {REFUSALS[line].format(**places)}\n")
    assert list(tmp_path.iterdir()) == [records]


@pytest.mark.usefixtures("plain")
def test_training_says_it_before_what_else_is_missing(records):
    changes = ["start.checkpoint=missing", f'data.sources=["{records}"]']
    experiment = load_experiment(ROOT / "configs" / "small" / "finetune_lora.py", changes)
    with pytest.raises(QilError, match=f"^{records} needs tensorflow_datasets: pip install 'qil_jax.data.'$"):
        require_inputs(experiment)


@pytest.mark.usefixtures("plain")
def test_folders_of_pngs_need_no_extra(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "000.png").touch()
    assert len(open_source(tmp_path)) == 1


def test_several_extras_are_one_command(monkeypatch):
    for name in ("gradio", "torch", "diffusers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(QilError, match=r"^it needs gradio, torch, diffusers: pip install 'qil_jax\[ui,parity\]'$"):
        require("it", "gradio", "numpy", "torch", "diffusers")


def test_what_is_installed_is_not_asked_for():
    require("it")
    require("it", *(name for name in EXTRA_OF if importlib.util.find_spec(name) is not None))


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def distributions(requirements: list[str]) -> set[str]:
    """The normalised names of requirements, those of this package's own extras included."""
    found = set()
    for text in requirements:
        own = re.match(r"qil_jax\[(.*)\]", text)
        names = own[1].split(",") if own else []
        found |= set().union(*(distributions(project()["optional-dependencies"][name]) for name in names))
        found |= set() if own else {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", text)[0]).lower()}
    return found


@cache
def brought_by() -> dict[str, set[str]]:
    """Installed modules to the normalised names of the distributions that bring them."""
    return {
        module: {re.sub(r"[-_.]+", "-", name).lower() for name in names}
        for module, names in importlib.metadata.packages_distributions().items()
    }


@pytest.mark.parametrize("module", EXTRA_OF)
def test_the_extra_brings_the_module(module):
    extra = distributions(project()["optional-dependencies"][EXTRA_OF[module]])
    if module in brought_by():
        assert brought_by()[module] & extra
    else:
        assert any(name in module.replace("_", "-") for name in extra)


def modules_of(program: str) -> set[Path]:
    """The files of a program and of everything of this repository that it imports, anywhere in it."""
    place = file_of(program)
    left, seen = [place] if place.is_file() else [*place.glob("*.py")], set()
    while left:
        file = left.pop()
        if file not in seen:
            seen.add(file)
            left += [found for name in imported(file) for found in files_of(name)]
    return seen


@cache
def imported(file: Path) -> frozenset[str]:
    """Dotted names of all imports of a file."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return frozenset(plain | {f"{node.module}.{alias.name}" for node in froms for alias in node.names})


def files_of(name: str) -> list[Path]:
    """The files of this repository that importing a dotted name reads, packages above it included."""
    parts = name.split(".")
    paths = [ROOT.joinpath(*parts[: count + 1]) for count in range(len(parts))]
    files = [file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py")]
    return [file for file in files if file.is_file()] if parts[0] in ("qil_jax", "tools") else []


@cache
def asked(file: Path) -> frozenset[str]:
    """Optional modules that a file names as text, if it calls `require`."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    text = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return frozenset(text & set(EXTRA_OF)) if "qil_jax.extras.require" in imported(file) else frozenset()


@pytest.mark.parametrize("program", programs())
@pytest.mark.full
def test_what_a_program_may_import_is_asked_for(program):
    """Every module from outside that it can reach is of the plain install, or `require` is called for it."""
    files = modules_of(program)
    tops = {name.split(".")[0] for file in files for name in imported(file)} - {"qil_jax", "tools", "configs"}
    base = distributions(project()["dependencies"])
    others = {WITHIN.get(name, name) for name in tops - set(sys.stdlib_module_names) - BESIDE}
    optional = {name for name in others if not brought_by().get(name, set()) & base}
    assert optional - set().union(*map(asked, files)) == set()


@pytest.mark.full
def test_every_entry_is_asked_for():
    assert set(EXTRA_OF) == set().union(*(asked(file) for program in programs() for file in modules_of(program)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_the_extras_of_its_commands(page):
    text = page.read_text(encoding="utf-8")
    said = {name for names in re.findall(r"\.\[([\w,]+)\]['\"]", text) for name in names.split(",")}
    assert {extra for pattern, extra in SPOKEN.items() if re.search(pattern, text)} - said == set()
