"""The commands of docs/training.md: those for two cores are run as they stand; tests/test_docs.py reads all of them."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from runs import ROOT

from qil_jax.training.config_file import load_experiment

POD = "# pod"
TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = [block.splitlines() for block in re.findall(r"```bash\n(.*?)\n```", TEXT, re.DOTALL)]
HERE = [line for block in BLOCKS if block[0] != POD for line in block]
ON_PODS = [line for block in BLOCKS if block[0] == POD for line in block[1:]]
INLINE = re.findall(r"`((?:--set [\w.]+=\S+ ?)+)`", TEXT)
OURS = ("python", "qil")
NOT_OURS = ("pip", "hf", "gcloud", "git", "cd", "srun")


def programs(line: str) -> list[list[str]]:
    """The words of each call of one of our programs in a line, as `python` takes them."""
    quoted = [word for word in shlex.split(line) if " && " in word]  # what another host's shell gets
    parts = [shlex.split(part) for whole in quoted or [line] for part in whole.split(" && ")]
    return [["-m", "qil_jax", *words[1:]] if words[0] == "qil" else words[1:] for words in parts if words[0] in OURS]


def test_the_page_has_both_kinds_of_commands():
    assert len(HERE) >= 6 and len(ON_PODS) >= 10 and INLINE
    assert all(programs(line) or shlex.split(line)[0] in NOT_OURS for line in HERE + ON_PODS)


@pytest.mark.slow
def test_commands_for_two_cores(tmp_path):
    """In a folder that holds the repository's programs and nothing else, in the page's order."""
    for name in ("tools", "configs", "examples", "qil_jax", "train.py", "infer.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    for line in HERE:
        (words,) = programs(line)
        ended = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, f"{line}\n{ended.stdout}{ended.stderr}"
    assert list((tmp_path / "results").glob("*/*.psd"))


@pytest.mark.parametrize("settings", INLINE)
def test_settings_in_the_text_are_settings(settings):
    changes = [word for word in shlex.split(settings) if word != "--set"]
    load_experiment(ROOT / "configs" / "released" / "stage1_text_to_rgba.py", changes)


def test_every_test_that_the_page_names_exists():
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    there = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    assert len(named) > 10 and named <= there
