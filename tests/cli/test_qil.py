"""The front door: `qil`, its verbs, their aliases, and the old names of programs that have become verbs."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qil_jax import programs
from qil_jax.cli.__main__ import dispatched, main_of, usage
from qil_jax.cli.commands import COMMANDS
from qil_jax.errors import QilError
from qil_jax.programs import called, command, typed

ROOT = Path(__file__).resolve().parents[2]
MOVED = [path for path in (ROOT / "tools").glob("*.py") if "import moved" in path.read_text(encoding="utf-8")]
LIGHT = """
import importlib, json, sys
from qil_jax.cli.__main__ import main_of
from qil_jax.cli.commands import COMMANDS
loaded = {}
for verb in COMMANDS:
    main_of(verb)
    loaded[verb] = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps(loaded))
"""
HEAVY = {"jax", "jaxlib", "flax", "orbax", "gradio", "apache_beam", "tensorflow", "torch", "psd_tools", "scipy"}


def python(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False)


def test_no_verb_imports_anything_heavy_before_it_works():
    """All verbs in one process: what one of them imported, the others cannot hide."""
    done = python("-c", LIGHT)
    loaded = json.loads(done.stdout)
    assert loaded.keys() == COMMANDS.keys()
    assert {verb: HEAVY & {*names} for verb, names in loaded.items() if HEAVY & {*names}} == {}


@pytest.mark.parametrize("module", ["qil_jax", "qil_jax.cli"])
def test_the_help_lists_all_verbs_and_is_light(module):
    done = python("-X", "importtime", "-m", module, "--help")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.split("commands:\n")[1].split("\n\n")[0].splitlines()] == [
        *COMMANDS
    ]
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "qil_jax" in imported and not {*HEAVY, "numpy", "pydantic", "rich"} & imported


def test_every_verb_has_a_line_and_a_main():
    for verb, entry in COMMANDS.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", verb) and 0 < len(entry.about) < 100 and "\n" not in entry.about
        assert callable(main_of(verb))
    files = {path.stem for path in (ROOT / "qil_jax" / "cli").glob("*.py") if "def main(" in path.read_text()}
    assert files == {entry.module for entry in COMMANDS.values()}
    assert main_of("infer") is main_of("decompose")


def test_a_misspelt_verb_is_answered_by_the_nearest():
    for said, meant in (("convrt", "convert"), ("cache_latents", "cache-latents"), ("decomposed", "decompose")):
        with pytest.raises(QilError, match=rf"no command '{said}' \(did you mean {meant}\?\); .*--help lists them"):
            main_of(said)
    done = python("-m", "qil_jax", "vali\x1bdate", "x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "\x1b" not in done.stderr
    assert "did you mean validate?" in done.stderr


def test_no_verb_is_answered_by_the_help(capsys):
    assert dispatched(None, []) == 2
    assert capsys.readouterr() == ("", usage() + "\n")
    assert dispatched("--help", []) == 0
    assert capsys.readouterr() == (usage() + "\n", "")


def test_a_verb_gets_the_rest_of_the_command_line_and_gives_its_status(tmp_path):
    done = python("-m", "qil_jax", "edit", tmp_path, "--until", "3")
    assert (done.returncode, done.stderr.count("--until needs --script")) == (2, 1)
    done = python("-m", "qil_jax", "fetch-assets", "--list")
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 3
    done = python("-m", "qil_jax", "validate", tmp_path, "--tolerance", "x")
    assert done.returncode == 2 and f"usage: {called('validate')} " in done.stderr


@pytest.mark.parametrize("path", MOVED, ids=lambda path: path.stem)
def test_old_names_answer_with_the_new_one(path):
    done = python(path, "anything", "--at-all")
    verb = path.stem.replace("_", "-")
    said = f"error: tools/{path.name} has become a command: {called(verb)}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said) and verb in COMMANDS


def test_every_old_program_answers():
    """The names of 0.2: thin files for a clone, or the line that names the verb."""
    old = "app build_dataset cache_latents convert convert_lpips edit evaluate export fetch_assets make_scenes plan "
    old += "show_batch validate view"
    thin = {"build_dataset", "convert", "evaluate", "plan", "validate"}
    assert {path.stem for path in MOVED} == {*old.split()} - thin
    for name in thin:
        assert importlib.import_module(f"tools.{name}").main is main_of(name.replace("_", "-"))
    for name, verb in (("infer", "decompose"), ("train", "train")):
        assert importlib.import_module(name).main is main_of(verb)


def test_commands_are_named_as_the_reader_can_type_them(monkeypatch):
    monkeypatch.setattr(programs.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["train.py", "x"])
    assert called("convert quantize") == "python -m qil_jax convert quantize"
    assert typed("qil train a") == "python -m qil_jax train a" and typed("hf download b") == "hf download b"
    monkeypatch.setattr(programs.shutil, "which", lambda name: f"bin/{name}" if name == "qil" else None)
    assert called("convert quantize") == "qil convert quantize"
    monkeypatch.setattr(programs.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["bin/qil", "x"])
    assert called("convert quantize") == "qil convert quantize"


@pytest.mark.parametrize("program", ["bin/qil", "lib/qil_jax/__main__.py", "lib/qil_jax/cli/__main__.py"])
def test_a_verb_that_was_cut_off_says_how_to_go_on(program, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, "convert", "to-orbax", "a b", "c"])
    assert command(["to-orbax", "a b", "c"]) == f"{called('convert')} to-orbax 'a b' c"
