"""What `qil validate` does: from its command line to tables, checksums and an exit status."""

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from qil_jax.errors import complain, message, say
from qil_jax.inference.checkpoint import require_layered
from qil_jax.models.config import ConfigError
from qil_jax.terminal import Table, console
from qil_jax.weights import Checkpoint, Component, Layout, StructureError, WeightsError
from qil_jax.weights.convert import checkpoint_bytes
from qil_jax.weights.released import STRUCTURE_HASHES, structure_hash
from qil_jax.weights.strict import read_json
from qil_jax.weights.values import TensorValues, checkpoint_values, differences, read_checksums, write_checksums


def structure(checkpoint: Checkpoint) -> Table:
    """Table of the contents of a sound checkpoint, one row per component."""
    table = Table("component", "layout", "tensors", "parameters", "dtypes", "names and shapes of")
    for component in Component:
        stored = checkpoint[component]
        source, entries = stored.source(), stored.table
        dtypes = sorted({source.dtype(target).name for target in stored.targets.values()})
        digest = structure_hash((entry.name, entry.shape) for entry in entries)
        table.add_row(
            component,
            stored.layout,
            f"{len(entries):,}",
            f"{sum(math.prod(entry.shape) for entry in entries):,}",
            ", ".join(dtypes),
            STRUCTURE_HASHES.get(digest, "no known release"),
        )
    return table


def made_by(origin: Mapping[str, Any]) -> str:
    """A line with the stage and the step of training.json, or of the header of a LoRA."""
    return f"made by the stage {origin.get('stage')}, step {origin.get('step')}" if origin else "made by no known stage"


def numerics(checkpoint: Checkpoint, reference: Checkpoint, tolerance: float, console: Console) -> int:
    """Print the errors of every block; returns how many exceed the tolerance."""
    from qil_jax.weights.numerics import compare

    console.print(f"fp32 against PyTorch with the weights of {reference.folder}; errors relative to the block's output")
    failed = 0
    for row in compare(checkpoint, reference):
        bad = not row.largest <= tolerance
        failed += bad
        mark = "  <-- FAILED" if bad else ""
        console.print(f"{row.component:13}{row.block:13} max {row.largest:.1e}  mean {row.mean:.1e}{mark}")
    return failed


def values(checkpoint: Checkpoint, console: Console) -> tuple[dict[str, TensorValues], int]:
    """Read every tensor and print anomalies; returns the statistics of each and the number with NaN or infinities."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task("values", total=checkpoint_bytes(checkpoint))
        found = checkpoint_values(checkpoint, lambda done: progress.advance(bar, done))
    broken = 0
    for name, tensor in found.items():
        if tensor.nan or tensor.infinite:
            broken += 1
            complain(f"{name}: {tensor.nan:,} NaN and {tensor.infinite:,} infinite values")
        elif tensor.constant is not None:
            console.print(f"{name}: all {'zero' if tensor.constant == 0 else tensor.constant}")
    console.print(f"{len(found):,} tensors read, {broken} of them with NaN or infinite values")
    return found, broken


def compared(found: Mapping[str, TensorValues], file: Path, sums: Mapping[str, Mapping[str, Any]]) -> int:
    """Print how the tensors differ from a file of checksums; returns how many do."""
    unlike = differences(found, sums)
    for line in unlike:
        complain(line)
    say(f"{len(found):,} tensors compared with {file}, {len(unlike)} differ")
    return len(unlike)


def validate(arguments: argparse.Namespace) -> int:
    """Check as the command line says; returns 0 for a sound checkpoint, 1 for one that is not.

    Raises:
      WeightsError: if PyTorch cannot read the reference.
    """
    checkpoint, other = Checkpoint(arguments.checkpoint), arguments.reference
    reference = checkpoint if other in (None, arguments.checkpoint) else Checkpoint(other)
    screen = console()
    try:
        sums = None if arguments.against is None else read_checksums(arguments.against)
        for opened in (checkpoint, reference):
            opened.require_sound()
        if arguments.numerics and not _is_released(reference):
            raise WeightsError([f"PyTorch cannot read {reference.folder}: give the released folder with --reference"])
        return checked(arguments, checkpoint, reference, sums, screen)
    except StructureError as error:
        complain(error)
        return 1


def _is_released(reference: Checkpoint) -> bool:
    """Whether PyTorch can read a sound checkpoint: it has the released layout and is not quantised."""
    parts = [reference[component] for component in Component]
    return all(part.layout is Layout.DIFFUSERS and part.architecture.quantisation is None for part in parts)


def checked(
    arguments: argparse.Namespace,
    checkpoint: Checkpoint,
    reference: Checkpoint,
    sums: Mapping[str, Any] | None,
    console: Console,
) -> int:
    """Make the requested checks beyond the structure, which is sound, and return the exit status."""
    console.print(structure(checkpoint))
    training = arguments.checkpoint / "training.json"
    if training.is_file():
        console.print(message(made_by(read_json(training, fix="remove it if no stage made this checkpoint"))))
    failed = 0
    if arguments.values or arguments.checksums is not None or sums is not None:
        found, failed = values(checkpoint, console)
        if arguments.checksums is not None:
            write_checksums(arguments.checksums, found)
        failed += 0 if sums is None else compared(found, arguments.against, sums)
    if arguments.numerics:
        wrong = numerics(checkpoint, reference, arguments.tolerance, console)
        if wrong:
            complain(f"{wrong} blocks differ by more than {arguments.tolerance:g}")
        failed += wrong
    if failed:
        return 1
    console.print(message(f"{arguments.checkpoint} is sound"))
    try:
        require_layered(checkpoint)
    except ConfigError as error:
        console.print(f"but it decomposes nothing: {message(error)}")
    return 0
