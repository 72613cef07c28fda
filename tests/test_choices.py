"""Choices of options: their values are written once, in a module that command lines import at once."""

import ast
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

import pytest

from qil_jax import choices

ROOT = Path(__file__).resolve().parents[1]
ENUMS = [kind for kind in vars(choices).values() if isinstance(kind, type) and issubclass(kind, StrEnum)]
HEAVY = ("jax", "numpy", "pydantic", "PIL")


def copies(source: str) -> list[str]:
    """Literal lists of two or more texts that are values of one enum."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            texts = [part.value for part in node.elts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            if len(texts) == len(node.elts) > 1:
                found += [f"line {node.lineno}: {kind.__name__}" for kind in ENUMS if {*texts} <= {*kind}]
    return found


def test_values_of_choices_are_written_once():
    files = [*(path for folder in ("qil_jax", "tools", "configs") for path in (ROOT / folder).rglob("*.py"))]
    files += [ROOT / "infer.py", ROOT / "train.py"]
    assert len(files) > 300 and len(ENUMS) > 12
    found = {str(path.relative_to(ROOT)): copies(path.read_text(encoding="utf-8")) for path in files}
    assert not {path: there for path, there in found.items() if there}


@pytest.mark.parametrize("line", ['("float32", "bfloat16")', '["xla", "splash"]', 'f(x, {"split", "whole"})'])
def test_a_copy_is_found(line):
    assert copies(line)


@pytest.mark.parametrize("line", ['("float32",)', '("float32", "float16")', "(Precision.FP32, Precision.BF16)"])
def test_other_lists_are_none(line):
    assert not copies(line)


def test_choices_import_nothing_heavy():
    said = f"import sys, qil_jax.choices; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
