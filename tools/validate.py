"""Say whether a checkpoint is sound; exit 0 only if it is.

python tools/validate.py CHECKPOINT                                   names, shapes, dtypes, sizes, configs
python tools/validate.py CHECKPOINT --numerics [--reference DIR]      and every block against PyTorch
"""

import argparse
import math
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qil_jax.programs import run_main


def structure(checkpoint: Path) -> Table:
    """What a sound checkpoint holds, one row a component."""
    from qil_jax.weights import Component, component_config, layout_of, open_source
    from qil_jax.weights.released import FINGERPRINTS, fingerprint
    from qil_jax.weights.tables import table_of, targets

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


def main(argv: list[str]) -> int:
    """Check; returns 0 for a sound checkpoint, 1 for one that is not, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(description="Say whether a checkpoint is sound; exit 0 only if it is.")
    parser.add_argument("checkpoint", type=Path, help="folder that holds model_index.json, of either layout")
    parser.add_argument("--numerics", action="store_true", help="also run every block through PyTorch and through ours")
    parser.add_argument(
        "--reference", type=Path, help="released folder whose weights PyTorch runs; CHECKPOINT otherwise"
    )
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of the largest error of a block")
    arguments = parser.parse_args(argv)
    # The heavy imports wait until the arguments make sense.
    from qil_jax.weights import Component, Layout, StructureError, layout_of, require_sound

    reference = arguments.reference or arguments.checkpoint
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    try:
        for folder in dict.fromkeys((arguments.checkpoint, reference)):
            require_sound(folder)
    except StructureError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.numerics and any(layout_of(reference / c) is not Layout.DIFFUSERS for c in Component):
        parser.error(f"PyTorch cannot read {reference}: give the released folder with --reference")
    console.print(structure(arguments.checkpoint))
    if arguments.numerics:
        failed = numerics(arguments.checkpoint, reference, arguments.tolerance, console)
        if failed:
            print(f"{failed} blocks differ by more than {arguments.tolerance:g}", file=sys.stderr)
            return 1
    console.print(f"{arguments.checkpoint} is sound")
    return 0


if __name__ == "__main__":
    run_main(main)
