"""tools/busy_tests.py: pytest's status is its own, and its loops end with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import until

from tools import busy_tests

CASE = """
import os, time
from pathlib import Path
import pytest

def test_it():
    parent, seen = os.getppid(), Path(__file__).with_suffix(".seen")
    seen.with_suffix(".part").write_text(Path(f"/proc/{parent}/task/{parent}/children").read_text())
    seen.with_suffix(".part").rename(seen)
    while WAITS and os.getppid() == parent:
        time.sleep(0.01)
    pytest.exit("over", returncode=7)
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children of a process are read in /proc")


def started(folder: Path, waits: bool) -> tuple[subprocess.Popen, list[Path]]:
    """The program on a test that may wait until the program is gone, and the folders in /proc of its children."""
    case = folder / "test_case.py"
    case.write_text(CASE.replace("WAITS", str(waits)))
    process = subprocess.Popen([sys.executable, busy_tests.__file__, "--", str(case)], stdout=subprocess.DEVNULL)
    until(case.with_suffix(".seen").exists)
    return process, [Path("/proc") / pid for pid in case.with_suffix(".seen").read_text().split()]


def runs(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.full
def test_the_status_is_that_of_pytest_and_the_loops_end(tmp_path):
    process, children = started(tmp_path, waits=False)
    assert process.wait() == 7
    assert len(children) == len(os.sched_getaffinity(0)) + 1, "a loop for each core, and pytest"
    assert not any(map(runs, children))


def test_the_loops_end_with_a_program_that_is_killed(tmp_path):
    process, children = started(tmp_path, waits=True)
    assert all(map(runs, children))
    process.kill()
    process.wait()
    until(lambda: not any(map(runs, children)))
