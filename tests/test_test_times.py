"""tools/test_times.py: what tests take is noted where they run, and summed by file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.test_times import table

ROOT = Path(__file__).resolve().parents[1]
BUSY = """
import subprocess, sys, time
WORK = "import time; start = time.process_time()\\nwhile time.process_time() < start + 1: pass"
def test_here(): exec(WORK)
def test_in_a_program(): subprocess.run([sys.executable, "-c", WORK], check=True)
def test_nothing(): pass
"""


@pytest.mark.full
def test_the_plugin_notes_cpu_time_here_and_in_programs(tmp_path):
    (tmp_path / "test_busy.py").write_text(BUSY)
    plugin = ["-p", "tests.times", "--times", str(tmp_path / "times.json"), "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", *plugin, "--rootdir", str(tmp_path), str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    times = {name.rpartition("::")[2]: of for name, of in json.loads((tmp_path / "times.json").read_text()).items()}
    assert times["test_here"]["cpu"] > 0.9 > times["test_here"]["children"]
    assert times["test_in_a_program"]["children"] > 0.9 > times["test_in_a_program"]["cpu"]
    assert times["test_nothing"]["cpu"] < 0.5


def test_files_are_summed_and_sorted():
    def took(cpu: float) -> dict[str, float]:
        return {"clock": 2 * cpu, "cpu": cpu, "children": 1.0, "compiling": 0.0}

    lines = table({"a.py::x": took(1), "b.py::y": took(2), "b.py::z": took(3)}, by_test=False, rows=1).splitlines()
    assert lines[2:] == ["| b.py | 2 | 10.0 | 7.0 | 2.0 | 0.0 |", "| all | 3 | 12.0 | 9.0 | 3.0 | 0.0 |"]
