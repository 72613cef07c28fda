"""Implementation of the commands quantize and dequantize of convert.py: command lines, and tables of errors."""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qil_jax.choices import Precision, Quantisation
from qil_jax.command_line import one_of
from qil_jax.errors import QilError, say
from tools.progress import byte_progress

if TYPE_CHECKING:
    from qil_jax.terminal import Table
    from qil_jax.weights.quantise import QuantisationReport

QUANTIZE, DEQUANTIZE = "quantize", "dequantize"
COMPONENTS = ("transformer", "text_encoder")


def add_quantize(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add both commands to a command line."""
    quantize = commands.add_parser(QUANTIZE, help="store the linear maps of all blocks in one byte per weight")
    quantize.add_argument("source", type=Path, help="folder that holds model_index.json, of either layout")
    quantize.add_argument("destination", type=Path, help="folder to write, which appears whole")
    quantize.add_argument(
        "--dtype", **one_of(Quantisation), required=True, help="fp8 is e4m3; int8 is about three times closer"
    )
    quantize.add_argument(
        "--components",
        type=lambda text: text.split(","),
        default=COMPONENTS,
        help=f"of {','.join(COMPONENTS)} those to quantise (default: both)",
    )
    dequantize = commands.add_parser(
        DEQUANTIZE, help="write a quantised checkpoint in full precision; what was rounded does not come back"
    )
    dequantize.add_argument(
        "source", type=Path, help="quantised checkpoint folder; or safetensors file of a transformer in ComfyUI's fp8"
    )
    dequantize.add_argument("destination", type=Path, help="folder to write, which appears whole")
    dequantize.add_argument(
        "--dtype", **one_of(Precision), default=Precision.BF16, help="of these weights (default bfloat16)"
    )
    dequantize.add_argument("--base", type=Path, help="checkpoint folder with all that a file lacks")


def quantize(arguments: argparse.Namespace) -> int:
    """Quantise as the command line says and print the errors; returns 0."""
    wrong = [name for name in arguments.components if name not in COMPONENTS]
    if wrong or not arguments.components:
        raise QilError(f"--components: {', '.join(wrong)}: give one or several of {','.join(COMPONENTS)}")
    # Heavy imports are deferred until the arguments are valid.
    from qil_jax.terminal import console
    from qil_jax.weights import Component
    from qil_jax.weights.quantise import REPORT, quantise_checkpoint

    components = [Component(name) for name in arguments.components]
    began = time.perf_counter()
    with byte_progress() as progress:
        bar = progress.add_task(QUANTIZE, total=None)
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


def dequantize(arguments: argparse.Namespace) -> int:
    """Write full precision as the command line says; returns 0."""
    source, destination = arguments.source, arguments.destination
    is_file = source.suffix == ".safetensors"
    if is_file != (arguments.base is not None):
        raise QilError("--base: goes with a safetensors file, which needs it" if is_file else "--base: is for a file")
    from qil_jax.weights.dequantise import dequantise_checkpoint, dequantise_comfy

    began = time.perf_counter()
    with byte_progress() as progress:
        bar = progress.add_task(DEQUANTIZE, total=None)
        on_bytes = lambda done: progress.advance(bar, done)
        if is_file:
            comfy = dequantise_comfy(source, arguments.base, destination, arguments.dtype, on_bytes=on_bytes)
            what = f"{len(comfy.scales)} weights in float8_e4m3fn, {comfy.scaled} of them with scales"
        else:
            parts = dequantise_checkpoint(source, destination, arguments.dtype, on_bytes=on_bytes)
            what = ", ".join(parts)
    say(f"{what} in {time.perf_counter() - began:.1f} s to {destination}; what was rounded does not come back")
    return 0
