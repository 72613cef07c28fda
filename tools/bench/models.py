"""The models compared with diffusers and transformers on the same random weights, inputs and precision (fp32).

Both sides run in one process and alternate. Peak memory is that of a process of its own which loads the weights of one
side and runs the case once.
"""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np

from qil_jax.errors import QilError
from tools.bench import harness
from tools.bench.cases import CASES, SIDES, write_weights

TOLERANCE = 1e-4
"""Largest difference of the results of both sides, relative to the largest value."""


def measure(arguments: argparse.Namespace) -> int:
    """The benchmark `models`; returns 0."""
    if arguments.only:
        SIDES[arguments.only](arguments.case[0], arguments.folder)()
        print(harness.peak_memory())
        return 0
    import diffusers
    import jax
    import torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_weights(folder)
        rows = []
        for case in arguments.case or CASES:
            rows.append(row(case, folder, arguments.repeats))
            print(*rows[-1], sep="   ", flush=True)
    head = ("case", "what", "ours", "reference", "times faster (lowest to highest)", "peak memory, ours", "reference")
    harness.report(head, rows, write=arguments.write, mark="bench", note=harness.machine(jax, torch, diffusers))
    return 0


def row(case: str, folder: Path, repeats: int) -> tuple[str, ...]:
    """The table row of a case, with its time and memory."""
    memory = {side: peak_memory(case, side, folder) for side in SIDES}
    with contextlib.redirect_stdout(sys.stderr):
        seconds = durations(case, folder, repeats)
    return (
        case,
        CASES[case],
        *(f"{harness.median(seconds[side]):.3f} s" for side in SIDES),
        harness.times_faster(seconds["ours"], seconds["reference"]),
        *(f"{memory[side]:.2f} GB" for side in SIDES),
    )


def durations(case: str, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of each run of both sides.

    Raises:
      QilError: if the sides do not give the same result.
    """
    runs = {side: build(case, folder) for side, build in SIDES.items()}
    results = {side: run() for side, run in runs.items()}
    assert results["ours"].shape == results["reference"].shape
    if case != "end to end":  # there each side draws its own noise; tests compare them with the same
        error = np.abs(results["ours"] - results["reference"]).max() / np.abs(results["reference"]).max()
        if not error <= TOLERANCE:
            raise QilError(f"{case}: the sides differ by {error:.1e} and do not do the same work")
    return harness.alternate(runs, repeats, warmup=0)


def peak_memory(case: str, side: str, folder: Path) -> float:
    """Largest resident memory, in GB, of a process that loads one side and runs the case once."""
    return harness.printed_by("models", "--only", side, "--case", case, "--folder", str(folder))
