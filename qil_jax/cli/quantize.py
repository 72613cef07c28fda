"""Store the linear maps of all blocks of a checkpoint in one byte per weight, and print what that cost.

qil quantize SRC DST --dtype int8 [--components transformer]
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from qil_jax.choices import Quantisation
from qil_jax.command_line import Parser, one_of
from qil_jax.errors import QilError, say
from qil_jax.programs import called, quieten_orbax
from qil_jax.progress import byte_progress

if TYPE_CHECKING:
    from qil_jax.terminal import Table
    from qil_jax.weights.quantise import QuantisationReport

COMPONENTS = ("transformer", "text_encoder")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    add("source", type=Path, help="folder that holds model_index.json, of either layout")
    add("destination", type=Path, help="folder to write, which appears whole")
    add("--dtype", **one_of(Quantisation), required=True, help="fp8 is e4m3; int8 is about three times closer")
    add(
        "--components",
        type=lambda text: text.split(","),
        default=COMPONENTS,
        help=f"of {','.join(COMPONENTS)} those to quantise (default: both)",
    )


def main(argv: list[str]) -> int:
    """Quantise and print the errors; returns 0."""
    parser = Parser(prog=called("quantize"), description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    """Quantise as the command line says and print the errors; returns 0.

    Raises:
      QilError: if --components names others than there are.
    """
    wrong = [name for name in arguments.components if name not in COMPONENTS]
    if wrong or not arguments.components:
        raise QilError(f"--components: {', '.join(wrong)}: give one or several of {','.join(COMPONENTS)}")
    quieten_orbax()
    # Heavy imports are deferred until the arguments are valid.
    from qil_jax.terminal import console
    from qil_jax.weights import Component
    from qil_jax.weights.quantise import REPORT, quantise_checkpoint

    components = [Component(name) for name in arguments.components]
    began = time.perf_counter()
    with byte_progress() as progress:
        bar = progress.add_task("quantize", total=None)
        reports = quantise_checkpoint(
            arguments.source,
            arguments.destination,
            arguments.dtype,
            components=components,
            on_bytes=lambda done: progress.advance(bar, done),
        )
    screen = console()
    for component, report in reports.items():
        screen.print(errors_by_block(component, report))
        screen.print(f"{component}: {report.elements / 1e6:,.1f} MB quantised; left as stored: {left(report)}")
        screen.print(f"{component}: {report.before / 1e6:,.1f} MB before, {report.after / 1e6:,.1f} MB after")
    seconds = time.perf_counter() - began
    say(f"verified and written in {seconds:.1f} s to {arguments.destination}; errors of all maps: COMPONENT/{REPORT}")
    return 0


def errors_by_block(component: str, report: "QuantisationReport") -> "Table":
    """A row per block with the root mean square error of all of its maps, and the worst map."""
    from qil_jax.terminal import Table

    table = Table("block", "lowest rms error", "highest", "of the map", "largest error", "of the map", title=component)
    blocks = defaultdict(list)
    for error in report.errors:
        blocks[error.block].append(error)
    for block, errors in sorted(blocks.items()):
        low, high = (pick(errors, key=lambda error: error.rms) for pick in (min, max))
        worst = max(errors, key=lambda error: error.largest)
        row = (f"{low.rms:.2%}", f"{high.rms:.2%}", high.kind, f"{worst.largest:.2%}", worst.kind)
        table.add_row(str(block), *row)
    return table


def left(report: "QuantisationReport") -> str:
    """The tensors of two or more axes that stayed as they were, in groups of equal beginning."""
    groups: dict[str, list[int]] = defaultdict(list)
    for name, size in report.left.items():
        groups[_beginning(name.split("."))].append(size)
    return ", ".join(_group(name, sizes) for name, sizes in groups.items())


def _beginning(words: list[str]) -> str:
    """The name of a tensor up to the number of its block."""
    return ".".join(words[: next((i for i, word in enumerate(words) if word.isdecimal()), len(words))])


def _group(name: str, sizes: Iterable[int]) -> str:
    sizes = list(sizes)
    return f"{name}{f' ({len(sizes)})' if len(sizes) > 1 else ''} {sum(sizes) / 1e6:,.1f} MB"
