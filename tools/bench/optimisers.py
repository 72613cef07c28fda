"""Muon compared with AdamW: equal runs of train.py, each in a process of its own, one after the other.

Both see the same batches and noise. The validation loss is that of the EMA on held-out records after the last step, the
rate the median of the lines of metrics, the memory the largest resident memory of the process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from qil_jax.errors import QilError
from tools.bench import harness
from tools.demo_training import ENVIRONMENT

LOSSES = ("validation/loss", "validation/loss/upper", "validation/loss/bottom")


def sides(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Overrides of the config by the name of an optimiser."""
    steps, rate = arguments.steps, f"{arguments.adamw:g}"
    both = [
        f"steps={steps}",
        f"validation.every={steps}",
        f"checkpoints.every={steps}",
        f"log_every={max(1, steps // 10)}",
        f"optimiser.warmup_steps={max(1, steps // 10)}",
        "mesh.data=2",
        *arguments.set,
    ]
    muon = [f"optimiser.learning_rate={arguments.muon:g}", f"optimiser.adamw_learning_rate={rate}"]
    return {
        "adamw": [*both, "optimiser.kind=adamw", f"optimiser.learning_rate={rate}"],
        "muon": [*both, "optimiser.kind=muon", *muon],
    }


def trained(config: Path, out: Path, overrides: Sequence[str]) -> tuple[list[dict[str, float]], float]:
    """Lines of metrics of a run, and the largest resident memory of its process in GB.

    Raises:
      QilError: if the run fails.
    """
    sets = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, str(harness.ROOT / "train.py"), str(config), "--out", str(out), *sets]
    child = subprocess.Popen(command, env=os.environ | ENVIRONMENT | {"JAX_PLATFORMS": "cpu"})
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise QilError(f"{' '.join(command)} gave {child.returncode}")
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], usage.ru_maxrss * 1024 / 1e9


def row(name: str, lines: Sequence[dict[str, float]], memory: float) -> tuple[str, ...]:
    """A line of the table."""
    found = {key: value for line in lines for key, value in line.items()}  # the last line of each wins
    rates = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    losses = (f"{found[key]:.4f}" if key in found else "" for key in LOSSES)
    return name, *losses, f"{harness.median(rates):.2f}", f"{memory:.2f} GB"


def measure(arguments: argparse.Namespace) -> int:
    """The benchmark `optimisers`; returns 0."""
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="optimisers-") as folder:
        rows = [
            row(name, *trained(arguments.config, Path(folder) / name, overrides))
            for name, overrides in sides(arguments).items()
        ]
    head = ("", "validation loss", "upper layers", "bottom", "samples/s", "peak memory")
    note = (
        f"{arguments.config.stem}, {arguments.steps} steps of each on two host devices. Peak learning rates: AdamW "
        f"{arguments.adamw:g}; Muon {arguments.muon:g} with AdamW {arguments.adamw:g} on the rest."
    )
    harness.report(head, rows, write=arguments.write, mark="bench optimisers", note=note)
    print(note)
    return 0
