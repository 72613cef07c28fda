"""Every program answers --help at once, and explains every option; unknown ones are refused by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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


def programs() -> list[str]:
    """All of the repository's: files, and folders that have a `__main__.py`."""
    files = [*ROOT.glob("*.py"), *(ROOT / "tools").rglob("*.py")]
    mains = [file for file in files if '__name__ == "__main__"' in file.read_text()]
    return sorted(str((file.parent if file.stem == "__main__" else file).relative_to(ROOT)) for file in mains)


def test_the_programs_are_found():
    assert {"infer.py", "train.py", "tools/convert.py", "tools/fuzz", "tools/bench"} < set(programs())


@pytest.mark.parametrize("name", programs())
@pytest.mark.full
def test_help_explains_every_option_and_imports_nothing_heavy(name):
    call = [sys.executable, "-c", LOOK, json.dumps([str(ROOT / name), "--help"])]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["unexplained"] == [[]]
    assert [module for module in found["modules"] if module in HEAVY] == []


def test_programs_find_one_another_from_any_folder(tmp_path):
    """As an editable install lets them."""
    call = [sys.executable, ROOT / "tools" / "bench", "--help"]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
