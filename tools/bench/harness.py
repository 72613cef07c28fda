"""Shared functions of the benchmarks: alternating measurements, medians, and tables on screen and in documents."""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console

from qil_jax.errors import QilError
from qil_jax.terminal import Table

ROOT = Path(__file__).resolve().parents[2]
Work = Callable[[], Any]
Measurement = TypeVar("Measurement")


def duration(work: Work) -> float:
    """Wall time of `work()`, in seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def alternate(
    sides: Mapping[str, Work], repeats: int, *, warmup: int = 1, measure: Callable[[Work], Measurement] = duration
) -> dict[str, list[Measurement]]:
    """Measurements of each side, which alternate so that changes of the machine's speed affect all sides equally.

    Args:
      sides: work to be measured, by the name of its side.
      repeats: number of measurements of each side.
      warmup: number of preceding rounds that are discarded.
      measure: function that runs the work of a side and returns its measurement.
    """
    found: dict[str, list[Measurement]] = {name: [] for name in sides}
    for number in range(warmup + repeats):
        for name, work in sides.items():
            measurement = measure(work)
            if number >= warmup:
                found[name].append(measurement)
    return found


def peak_memory() -> float:
    """Largest resident memory of this process so far, in GB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def printed_by(*words: str) -> float:
    """The number that a process of its own prints last, which runs these benchmarks with other words, on CPUs."""
    return numbers_printed_by(*words)[-1]


def numbers_printed_by(*words: str) -> list[float]:
    """The numbers on the last line of a process of its own, which runs these benchmarks with other words, on CPUs."""
    command = [sys.executable, str(Path(__file__).parent), *words]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}  # libtpu, where it is installed, would be loaded, too
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    return [float(number) for number in printed.splitlines()[-1].split()]


def median(values: Sequence[float]) -> float:
    """The median as a Python float."""
    return float(np.median(values))


def times_faster(ours: Sequence[float], reference: Sequence[float]) -> str:
    """Ratio of the medians, and the lowest and highest ratio of a pair of neighbouring runs."""
    ratios = np.divide(reference, ours)
    return f"{median(reference) / median(ours):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


def add_write(parser: argparse.ArgumentParser) -> None:
    """Add the option that every benchmark with a table in docs/benchmarks.md has."""
    parser.add_argument("--write", type=Path, help="replace the table between the marks of this file")


def report(head: Sequence[str], rows: Sequence[Sequence[str]], *, write: Path | None, mark: str, note: str) -> None:
    """Print a table, and put it between the marks of a Markdown file if one is given."""
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if write is not None:
        write_between(write, mark, [head, *rows], note)


def machine(*packages: Any) -> str:
    """The note below a table: cores, versions of packages, precision."""
    versions = [f"{package.__name__} {package.__version__.split('+')[0]}" for package in packages]
    return f"{os.cpu_count()} {platform.machine()} cores, {', '.join(versions)}, fp32."


def write_between(file: Path, mark: str, rows: Sequence[Sequence[str]], note: str = "") -> None:
    """Replace what stands between `<!-- mark: begin -->` and `<!-- mark: end -->`: a table, its head first, and a note.

    Raises:
      QilError: if the file has no such marks.
    """
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    head, *others = ["| " + " | ".join(row) + " |" for row in rows]
    lines = [begin, head, "|---" * len(rows[0]) + "|", *others, *(["", note] if note else []), end]
    text = file.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise QilError(f"{file}: has no marks {begin} and {end}: put them where the table belongs")
    file.write_text(re.sub(f"{begin}.*?{end}", lambda _: "\n".join(lines), text, flags=re.DOTALL), encoding="utf-8")
