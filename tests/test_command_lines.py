"""Every program answers --help at once, and explains every option; unknown ones are refused by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qil_jax.cli import validate
from qil_jax.cli.__main__ import main_of
from qil_jax.cli.commands import COMMANDS
from qil_jax.programs import ended

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("apache_beam", "flax", "jax", "orbax", "psd_tools", "scipy", "tensorflow", "torch", "transformers")
LOOK = """
import argparse, json, runpy, sys

def unexplained(parser):
    found = []
    for action in parser._actions:
        found += [] if action.help else [" ".join(action.option_strings) or action.dest]
        for name, sub in (action.choices.items() if isinstance(action, argparse._SubParsersAction) else ()):
            found += [f"{name} {option}" for option in unexplained(sub)]
        if isinstance(action, argparse._SubParsersAction):
            found += [choice.dest for choice in action._choices_actions if not choice.help]
            found += sorted(set(action.choices) - {choice.dest for choice in action._choices_actions})
    return found

def print_help(parser, file=None):
    seen.append(unexplained(parser))

seen = []
argparse.ArgumentParser.print_help = print_help
sys.argv = json.loads(sys.argv[1])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps({"unexplained": seen, "modules": sorted(sys.modules)}))
"""


def mains() -> dict[Path, str]:
    """The files of the repository that are programs, and their texts."""
    files = [*ROOT.glob("*.py"), *(ROOT / "tools").rglob("*.py")]
    return {file: text for file in files if '__name__ == "__main__"' in (text := file.read_text(encoding="utf-8"))}


def programs() -> list[str]:
    """All: the verbs of `qil`, and of the repository files, and folders that have a `__main__.py`."""
    files = [file for file, text in mains().items() if "import moved" not in text]
    names = [str((file.parent if file.stem == "__main__" else file).relative_to(ROOT)) for file in files]
    return sorted([*names, *(f"qil {verb}" for verb in COMMANDS)])


def file_of(program: str) -> Path:
    """The file of a program, or the folder that has its `__main__.py`."""
    verb = program.removeprefix("qil ")
    return ROOT / program if verb == program else ROOT / "qil_jax" / "cli" / f"{COMMANDS[verb].module}.py"


def call_of(program: str) -> list[str]:
    """The words of a command line that call it, without Python."""
    verb = program.removeprefix("qil ")
    return [str(ROOT / program)] if verb == program else [str(ROOT / "qil_jax" / "__main__.py"), verb]


def test_the_programs_are_found():
    clone = {f"tools/{name}.py" for name in ("build_dataset", "convert", "evaluate", "plan", "validate")}
    assert {"infer.py", "train.py", "tools/fuzz", "tools/bench", "qil app", "qil infer", *clone} < set(programs())


@pytest.mark.parametrize("name", programs())
@pytest.mark.full
def test_help_explains_every_option_and_imports_nothing_heavy(name):
    call = [sys.executable, "-c", LOOK, json.dumps([*call_of(name), "--help"])]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["unexplained"] == [[]]
    assert [module for module in found["modules"] if module in HEAVY] == []


MANY = "9" * 5000
NUMBERS = {
    "decompose a.png --out o --batch": f"{'9' * 60}... is no integer of at most 4294967295",
    "decompose a.png --out o --steps": f"{'9' * 60}... is no integer of at most 4294967295",
    "decompose a.png --out o --guidance": f"{'9' * 60}... is no number of at most 4294967295",
    "decompose a.png --out o --layers": f"{'9' * 60}... is no integer of at most 4294967295",
    "decompose a.png --out o --distributed a:1,2,": "error: the processes do not come together",
    "decompose a.png --out o --wait": f"{'9' * 60}... is no number of seconds: give 0 or more",
    "validate a --tolerance": f"{'9' * 60}... is no number of at most 4294967295",
    "evaluate layers d --out o --layers": f"--layers must be 'true' or from 2 to 20, got {'9' * 60}...",
    "evaluate layers d --out o --mesh data=": f"'data={'9' * 55}...': the size must be a positive integer",
}


@pytest.mark.parametrize("call", NUMBERS)
def test_numbers_of_thousands_of_digits_are_refused_in_a_sentence(call, capsys):
    verb, *words = f"{call}{'' if call.endswith(('=', ',')) else ' '}{MANY}".split()
    status = refused(main_of(verb), words)
    said = capsys.readouterr().err
    assert status == 2 and NUMBERS[call] in said, said
    assert len(said) < 3000


def refused(main, words: list[str]) -> object:
    """The exit status, of a parser or of a program."""
    try:
        return ended(main, words)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "x"])
def test_options_that_are_numbers_are_finite(value, capsys):
    with pytest.raises(SystemExit):
        validate.main(["a", f"--tolerance={value}"])
    assert f"argument --tolerance: {value} is no number of at most 4294967295" in capsys.readouterr().err


def test_programs_find_one_another_from_any_folder(tmp_path):
    """As an editable install lets them."""
    call = [sys.executable, ROOT / "tools" / "bench", "--help"]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
