"""Say whether a checkpoint is sound; exit 0 only if it is.

python tools/validate.py CHECKPOINT                                   names, shapes, dtypes, sizes, configs
python tools/validate.py CHECKPOINT --values [--checksums FILE] [--against FILE]
                                                                      and every value: NaN, infinities, checksums
python tools/validate.py CHECKPOINT --numerics [--reference DIR]      and every block against PyTorch
"""

import argparse
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

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
from qil_jax.weights.released import FINGERPRINTS, fingerprint
from qil_jax.weights.source import Layout
from qil_jax.weights.tables import table_of, targets
from qil_jax.weights.values import TensorValues, checkpoint_values, differences, read_checksums, write_checksums


def structure(checkpoint: Path) -> Table:
    """What a sound checkpoint holds, one row a component."""
    table = Table("component", "layout", "tensors", "parameters", "dtypes", "names and shapes of")
    for component in Component:
        entries = table_of(component, component_config(checkpoint, component))
        source = open_source(checkpoint / component, component)
        dtypes = sorted({source.dtype(target).name for target in targets(entries).values()})
        digest = fingerprint((entry.name, entry.shape) for entry in entries)
        table.add_row(
            component,
            layout_of(checkpoint / component),
            f"{len(entries):,}",
            f"{sum(math.prod(entry.shape) for entry in entries):,}",
            ", ".join(dtypes),
            FINGERPRINTS.get(digest, "no known release"),
        )
    return table


def numerics(checkpoint: Path, reference: Path, tolerance: float, console: Console) -> int:
    """Print the errors of every block; returns how many exceed the tolerance."""
    from numerics import compare

    console.print(f"fp32 against PyTorch with the weights of {reference}; errors relative to the block's output")
    failed = 0
    for row in compare(checkpoint, reference):
        bad = not row.largest <= tolerance
        failed += bad
        mark = "  <-- FAILED" if bad else ""
        console.print(f"{row.component:13}{row.block:13} max {row.largest:.1e}  mean {row.mean:.1e}{mark}")
    return failed


def values(checkpoint: Path, console: Console) -> tuple[dict[str, TensorValues], int]:
    """Read every tensor and print what stands out; also returns how many tensors hold NaN or infinities."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task("values", total=checkpoint_bytes(checkpoint))
        found = checkpoint_values(checkpoint, lambda done: progress.advance(bar, done))
    broken = 0
    for name, tensor in found.items():
        if tensor.nan or tensor.infinite:
            broken += 1
            print(f"{name}: {tensor.nan:,} NaN and {tensor.infinite:,} infinite values", file=sys.stderr)
        elif tensor.constant is not None:
            console.print(f"{name}: all {'zero' if tensor.constant == 0 else tensor.constant}")
    console.print(f"{len(found):,} tensors read, {broken} of them with NaN or infinite values")
    return found, broken


def compared(found: Mapping[str, TensorValues], file: Path, sums: Mapping[str, Mapping[str, Any]]) -> int:
    """Print how the tensors differ from a file of checksums; returns how many do."""
    unlike = differences(found, sums)
    for line in unlike:
        print(line, file=sys.stderr)
    print(f"{len(found):,} tensors compared with {file}, {len(unlike)} differ")
    return len(unlike)


def parsed(argv: list[str]) -> argparse.Namespace:
    """The command line; ends the program if it cannot be followed."""
    parser = argparse.ArgumentParser(description="Say whether a checkpoint is sound; exit 0 only if it is.")
    parser.add_argument("checkpoint", type=Path, help="folder that holds model_index.json, of either layout")
    parser.add_argument("--values", action="store_true", help="also read every tensor: no NaN, no infinite value")
    parser.add_argument("--checksums", type=Path, metavar="FILE", help="--values, and write a checksum per tensor")
    parser.add_argument("--against", type=Path, metavar="FILE", help="--values, and compare with such a file")
    parser.add_argument("--numerics", action="store_true", help="also run every block through PyTorch and through ours")
    parser.add_argument(
        "--reference", type=Path, help="released folder whose weights PyTorch runs; CHECKPOINT otherwise"
    )
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of the largest error of a block")
    arguments = parser.parse_args(argv)
    if arguments.checksums is not None and os.path.lexists(arguments.checksums):
        parser.error(f"{arguments.checksums} exists: give another file, or remove it")
    return arguments


def main(argv: list[str]) -> int:
    """Check; returns 0 for a sound checkpoint, 1 for one that is not, 2 for wrong arguments."""
    arguments = parsed(argv)
    reference = arguments.reference or arguments.checkpoint
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    try:
        sums = None if arguments.against is None else read_checksums(arguments.against)
        for folder in dict.fromkeys((arguments.checkpoint, reference)):
            require_sound(folder)
        if arguments.numerics and any(layout_of(reference / c) is not Layout.DIFFUSERS for c in Component):
            raise WeightsError([f"PyTorch cannot read {reference}: give the released folder with --reference"])
        return checked(arguments, reference, sums, console)
    except StructureError as error:
        print(error, file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def checked(arguments: argparse.Namespace, reference: Path, sums: Mapping[str, Any] | None, console: Console) -> int:
    """What is asked beyond the structure of a checkpoint whose structure is sound; the exit status."""
    console.print(structure(arguments.checkpoint))
    failed = 0
    if arguments.values or arguments.checksums is not None or sums is not None:
        found, failed = values(arguments.checkpoint, console)
        if arguments.checksums is not None:
            write_checksums(arguments.checksums, found)
        failed += 0 if sums is None else compared(found, arguments.against, sums)
    if arguments.numerics:
        wrong = numerics(arguments.checkpoint, reference, arguments.tolerance, console)
        if wrong:
            print(f"{wrong} blocks differ by more than {arguments.tolerance:g}", file=sys.stderr)
        failed += wrong
    if failed:
        return 1
    console.print(f"{arguments.checkpoint} is sound")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
