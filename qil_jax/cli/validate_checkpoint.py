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
from qil_jax.inference.checkpoint import unlayered
from qil_jax.terminal import Table, console
from qil_jax.weights import (
    Component,
    StructureError,
    WeightsError,
    component_config,
    layout_of,
    open_source,
    require_sound,
)
from qil_jax.weights.convert import checkpoint_bytes
from qil_jax.weights.released import STRUCTURE_HASHES, structure_hash
from qil_jax.weights.source import Layout
from qil_jax.weights.strict import read_json
from qil_jax.weights.tables import table_of
from qil_jax.weights.tables.entries import targets
from qil_jax.weights.tables.quantised import quantisation_of
from qil_jax.weights.values import TensorValues, checkpoint_values, differences, read_checksums, write_checksums


def structure(checkpoint: Path) -> Table:
    """Table of the contents of a sound checkpoint, one row per component."""
    table = Table("component", "layout", "tensors", "parameters", "dtypes", "names and shapes of")
    for component in Component:
        entries = table_of(component, component_config(checkpoint, component))
        source = open_source(checkpoint / component, component)
        dtypes = sorted({source.dtype(target).name for target in targets(entries).values()})
        digest = structure_hash((entry.name, entry.shape) for entry in entries)
        table.add_row(
            component,
            layout_of(checkpoint / component),
            f"{len(entries):,}",
            f"{sum(math.prod(entry.shape) for entry in entries):,}",
            ", ".join(dtypes),
            STRUCTURE_HASHES.get(digest, "no known release"),
        )
    return table


def made_by(origin: Mapping[str, Any]) -> str:
    """A line with the stage and the step of training.json, or of the header of a LoRA."""
    return f"made by the stage {origin.get('stage')}, step {origin.get('step')}" if origin else "made by no known stage"


def numerics(checkpoint: Path, reference: Path, tolerance: float, console: Console) -> int:
    """Print the errors of every block; returns how many exceed the tolerance."""
    from qil_jax.weights.numerics import compare

    console.print(f"fp32 against PyTorch with the weights of {reference}; errors relative to the block's output")
    failed = 0
    for row in compare(checkpoint, reference):
        bad = not row.largest <= tolerance
        failed += bad
        mark = "  <-- FAILED" if bad else ""
        console.print(f"{row.component:13}{row.block:13} max {row.largest:.1e}  mean {row.mean:.1e}{mark}")
    return failed


def values(checkpoint: Path, console: Console) -> tuple[dict[str, TensorValues], int]:
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
    reference = arguments.reference or arguments.checkpoint
    screen = console()
    try:
        sums = None if arguments.against is None else read_checksums(arguments.against)
        for folder in dict.fromkeys((arguments.checkpoint, reference)):
            require_sound(folder)
        if arguments.numerics and not _is_released(reference):
            raise WeightsError([f"PyTorch cannot read {reference}: give the released folder with --reference"])
        return checked(arguments, reference, sums, screen)
    except StructureError as error:
        complain(error)
        return 1


def _is_released(reference: Path) -> bool:
    """Whether PyTorch can read a sound checkpoint: it has the released layout and is not quantised."""
    layouts = {layout_of(reference / component) for component in Component}
    quantised = [c for c in Component if quantisation_of(c, component_config(reference, c)) is not None]
    return layouts == {Layout.DIFFUSERS} and not quantised


def checked(arguments: argparse.Namespace, reference: Path, sums: Mapping[str, Any] | None, console: Console) -> int:
    """Make the requested checks beyond the structure, which is sound, and return the exit status."""
    console.print(structure(arguments.checkpoint))
    training = arguments.checkpoint / "training.json"
    if training.is_file():
        console.print(message(made_by(read_json(training, fix="remove it if no stage made this checkpoint"))))
    failed = 0
    if arguments.values or arguments.checksums is not None or sums is not None:
        found, failed = values(arguments.checkpoint, console)
        if arguments.checksums is not None:
            write_checksums(arguments.checksums, found)
        failed += 0 if sums is None else compared(found, arguments.against, sums)
    if arguments.numerics:
        wrong = numerics(arguments.checkpoint, reference, arguments.tolerance, console)
        if wrong:
            complain(f"{wrong} blocks differ by more than {arguments.tolerance:g}")
        failed += wrong
    if failed:
        return 1
    console.print(message(f"{arguments.checkpoint} is sound"))
    problem = unlayered(arguments.checkpoint)
    if problem is not None:
        console.print(f"but it decomposes nothing: {message(problem)}")
    return 0
