"""Run tests beside busy loops, one for each core: no outcome of a test may depend on how fast the machine is.

python tools/busy_tests.py                            the fast tier
python tools/busy_tests.py -- -n 2 tests/training     what pytest is given instead, with paths from the repository
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qil_jax.command_line import Parser
from qil_jax.programs import run_main

ROOT = Path(__file__).resolve().parents[1]
FAST = ("-m", "not full and not slow", "-n", "2", "--dist", "worksteal")
LOOP = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(100_000):
        pass
"""
"""A busy loop that ends with its parent, however that ends."""


def parser() -> Parser:
    """The command line."""
    parse = Parser(description=__doc__)
    parse.add_argument("words", nargs="*", metavar="-- WORD", help=f"arguments of pytest (default: {' '.join(FAST)})")
    return parse


def main(argv: list[str]) -> int:
    """Run pytest; returns its status."""
    words = parser().parse_args(argv).words or FAST
    with busy(len(os.sched_getaffinity(0))):
        return subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, check=False).returncode


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many busy loops for the time of the block."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP, str(os.getpid())]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    run_main(main)
