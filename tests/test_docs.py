"""What the pages say can be followed: their links lead somewhere, and their commands are ones that the programs take.

Nothing is run here: a command is read by its program's own argument parser. docs/testing.md says which are run, and by
which test.
"""

import argparse
import functools
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from qil_jax.cli.__main__ import main_of as verb_main
from qil_jax.errors import QilError
from qil_jax.mesh import MeshShape
from qil_jax.training.config_file import load_experiment

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(p for folder in (".", "docs", "examples", ".github") for p in (ROOT / folder).glob("*.md"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text()
OURS = ("make", "pip", "python", "qil")
NOT_OURS = ("cd", "curl", "gcloud", "git", "hf", "srun", "vllm")
"""Programs whose command lines nothing here can check, beyond the calls of our own programs in them."""
HERE = ("configs", "docs", "examples", "qil_jax", "tests", "tools")
NO_COMMANDS = ("json", "mermaid", "python", "yaml", "toml")


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and lines of each code block: fenced, or indented, which has no language."""
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?<=\n\n)(?:    .*\n|\n(?=    ))+", without_fences(text))
    return fenced + [("", block) for block in indented]


def without_fences(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```\n?", "", text, flags=re.DOTALL | re.MULTILINE)


def without_code(text: str) -> str:
    text = re.sub(r"(?<=\n\n)(?:    .*\n|\n(?=    ))+", "", without_fences(text))
    return re.sub(r"`[^`\n]*`", "``", text)


def whole_lines(block: str) -> list[str]:
    """The commands of a block, where quotes, a backslash or a synopsis' next `[` carry one over several lines."""
    block = re.sub(r"\\\n|\n(?= *\[--)", " ", block)
    found, line = [], ""
    for part in block.splitlines():
        line = f"{line}\n{part}" if line else part.strip()
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a quote is open
            continue
        found, line = [*found, line] if words else found, ""
    assert not line, f"a quote is never closed: {line}"
    return found


def words_of(line: str) -> list[str]:
    """The words of a command up to a redirection or pipe, with a synopsis read as its longest form."""
    line = re.sub(r"\[(--[^\]]*)\]", r"\1", line.removeprefix(".venv/bin/"))
    words = shlex.split(re.sub(r"\b(\w+)\|\w+\b", r"\1", line), comments=True)
    words = words[: next((i for i, word in enumerate(words) if word in (">", "|")), None)]
    return ["1" if word == "N" else word for word in words if word != "..."]


def calls(line: str) -> list[list[str]]:
    """The calls of our programs in a line, also those that it hands to the shell of another machine."""
    quoted = [word for word in shlex.split(line, comments=True) if " && " in word]
    parts = [words_of(part) for whole in quoted or [line] for part in whole.split(" && ")]
    return [words[1:] if words[0] == "srun" else words for words in parts if {*words[:2]} & {*OURS}]


def commands(text: str) -> list[tuple[str, bool]]:
    """The commands of a page that call our programs, and whether each is a whole one, not a mention in the text."""
    lines = [line for language, block in blocks(text) if language not in NO_COMMANDS for line in whole_lines(block)]
    mentions = re.findall(r"`((?:srun |" + " |".join(OURS) + r" )[^`\n]+)`", without_fences(text))
    return [(line, True) for line in lines if calls(line)] + [(mention, False) for mention in mentions]


class RefusedError(Exception):
    """What a parser of a command line says."""


class Parsed(BaseException):
    """Ends a program once it has read its command line; no program catches it."""


def parsed(program: str, words: list[str], patch: pytest.MonkeyPatch) -> argparse.Namespace:
    """The command line as the program itself reads it, without what the program then does."""
    read = argparse.ArgumentParser.parse_args

    def refuse(self, message):
        raise RefusedError(message)

    def stop(self, args=None, namespace=None):
        raise Parsed(read(self, args, namespace))

    patch.setattr(argparse.ArgumentParser, "parse_args", stop)
    patch.setattr(argparse.ArgumentParser, "error", refuse)
    try:
        main_of(program)(words)
    except Parsed as end:
        return end.args[0]
    raise AssertionError(f"{program} did not read its command line")


@functools.cache
def main_of(program: str):
    verb = program.removeprefix("qil ")
    if verb != program:
        try:
            return verb_main(verb)
        except QilError as error:
            raise RefusedError(str(error)) from error
    path = ROOT / program
    if not path.exists():
        raise RefusedError(f"there is no program {program}")
    module = relative(path / "__main__" if path.is_dir() else path.with_suffix("")).replace("/", ".")
    return importlib.import_module(module).main


def problem_of(words: list[str], is_whole: bool, patch: pytest.MonkeyPatch) -> str | None:
    """What is wrong with a call of one of our programs; a mention may leave out what the program needs."""
    program, *words = words
    missing = [word for word in words if word.split("/")[0] in HERE and "/" in word and not (ROOT / word).exists()]
    if missing:
        return f"no such file: {missing[0]}"
    if program == "make":
        return make_problem(words)
    if program == "pip":
        return pip_problem(words)
    if program in ("python", "qil"):
        begin, (program, *words) = program, words
        if program.startswith("-"):
            return None  # a module or a line of Python, or --help
        program = f"qil {program}" if begin == "qil" else program
    try:
        got = parsed(program, [word for word in words if word != "--help"], patch)
        for mesh in (getattr(got, "mesh", None) or "").split(";"):  # a benchmark takes several
            MeshShape.parse(mesh)
        if str(getattr(got, "config", "")).startswith("configs/"):
            load_experiment(ROOT / got.config, getattr(got, "set", []))
    except RefusedError as refusal:
        left_out = re.search("arguments are required|expected one argument", str(refusal))
        return None if not is_whole and left_out else str(refusal)
    return None


def make_problem(words: list[str]) -> str | None:
    targets = re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE)
    variables = re.findall(r"^(\w+) \?= ", MAKEFILE, re.MULTILINE)
    unknown = [word for word in words if word.split("=")[0] not in (variables if "=" in word else targets)]
    return f"the Makefile has no {unknown[0]}" if unknown else None


def pip_problem(words: list[str]) -> str | None:
    pins = {pin for extra in EXTRAS.values() for pin in extra if "==" in pin}
    for word in words[1:]:
        name, _, extras = word.rstrip("]").partition("[")
        if name in (".", "qil_jax") and extras and (unknown := {*extras.split(",")} - {*EXTRAS}):
            return f"pyproject.toml has no extra {unknown}"
        if "==" in word and word not in pins:
            return f"pyproject.toml pins no {word}"
    return None


EVERY = [(page, *command) for page in PAGES for command in commands(page.read_text(encoding="utf-8"))]


def test_the_commands_are_found():
    lines = [line for _, line, is_whole in EVERY if is_whole]
    assert len(lines) > 90 and len(EVERY) - len(lines) > 20
    assert {relative(page) for page, *_ in EVERY} >= {"README.md", "docs/training.md", "docs/pods.md", "docs/data.md"}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in (x for language, block in blocks(text) if language in ("sh", "bash") for x in whole_lines(block)):
            assert words_of(line)[0] in (*OURS, *NOT_OURS), f"{relative(page)}: {line}"


@pytest.mark.parametrize(("page", "line", "is_whole"), EVERY, ids=[f"{relative(p)}: {line}" for p, line, _ in EVERY])
def test_programs_take_the_commands_of_the_pages(page, line, is_whole, monkeypatch):
    assert [problem_of(words, is_whole, monkeypatch) for words in calls(line)] == [None] * len(calls(line))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("qil decompose a.png --out x --step 4", "unknown option --step (did you mean --steps?)"),
        ("qil convrt to-orbax a b", "there is no command 'convrt' (did you mean convert?)"),
        ("python infer.py a.png --out x --step 4", "unknown option --step (did you mean --steps?)"),
        ("qil infer a.png --out x --export gif", "'gif' is no format"),
        ("python tools/nothing.py", "no such file: tools/nothing.py"),
        ("python evaluate.py layers", "there is no program evaluate.py"),
        ("qil convert to-jax a b", "invalid choice: 'to-jax'"),
        ("python tools/convert.py to-orbax a", "the following arguments are required: destination"),
        ("qil train configs/small/nothing.py", "no such file: configs/small/nothing.py"),
        ("gcloud x --command 'cd y && qil train --outs z'", "unknown option --outs"),
        ("make tests", "the Makefile has no tests"),
        ("make demo-training PART=1", "the Makefile has no PART=1"),
        ("pip install -e '.[data,tests]'", "pyproject.toml has no extra {'tests'}"),
        ("pip install torch==1.0", "pyproject.toml pins no torch==1.0"),
    ],
)
def test_commands_that_are_none_are_found(line, says, monkeypatch):
    ((found, is_whole),) = commands(f"Text:\n\n    {line}  # as it was\n\nMore.\n")
    assert is_whole
    assert says in str(problem_of(calls(found)[-1], is_whole, monkeypatch))


def test_settings_that_are_none_are_found(monkeypatch):
    line = "train configs/small/finetune_lora.py --set optimiser.rate=1"
    with pytest.raises(ValueError, match="rate"):
        problem_of(["qil", *line.split()], True, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_what_pages_import_is_there(page):
    lines = re.findall(r"^ *from (qil_jax[\w.]*) import ([\w, ]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    for module, names in lines:
        assert [n for n in names.split(", ") if not hasattr(importlib.import_module(module), n)] == []


def test_a_synopsis_and_a_mention_are_read():
    assert words_of("qil evaluate layers X [--layers true|N] [--count N] > y") == [
        "qil", "evaluate", "layers", "X", "--layers", "true", "--count", "1",
    ]  # fmt: skip
    assert commands("Say `make demo`, not `make`.\n\n```python\nmake demo\n```\n") == [("make demo", False)]
    assert whole_lines("a \\\n  b\nc '{\n d'  # e\nf\n  [--g]\n# h\n") == ["a    b", "c '{\n d'  # e", "f   [--g]"]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ +(.+?) *$", without_fences(text), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def link_problems(page: Path, text: str) -> list[str]:
    """Links and pictures of a page that lead to no file of the repository, or to no heading of a page."""
    problems = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"(https?|mailto):", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            problems.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(text if target == page else target.read_text(encoding="utf-8")):
            problems.append(f"{link}: no such heading")
    return problems


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page):
    if page.name != "api.md":  # its anchors are written by the program that writes it
        assert link_problems(page, page.read_text(encoding="utf-8")) == []


def test_links_that_lead_nowhere_are_found():
    text = "# A `b`: c\n[1](#a-b-c) [2](#a) ![3](docs/x.png) [4](docs/demo.md#training) [5](../x) `[6](y)`\n"
    assert link_problems(ROOT / "README.md", text) == [
        "#a: no such heading",
        "docs/x.png: no such file",
        "docs/demo.md#training: no such heading",
        "../x: no such file",
    ]


def test_the_newest_version_of_the_changelog_is_that_of_the_package():
    versions = re.findall(r"^## \[(.+?)\]( - \d{4}-\d\d-\d\d)?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == ("Unreleased", "") and all(date for _, date in versions[1:])
    assert versions[1][0] == PROJECT["version"]
    numbers = [tuple(map(int, version.split("."))) for version, _ in versions[1:]]
    assert numbers == sorted({*numbers}, reverse=True)


def test_every_page_is_in_the_sites_menu():
    menu = re.findall(r": ([\w./-]+\.md)$", (ROOT / "docs" / "site" / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [page.name for page in (ROOT / "docs").glob("*.md")]
    assert sorted(menu) == sorted([*pages, "index.md", "contributing.md", "changelog.md"])
