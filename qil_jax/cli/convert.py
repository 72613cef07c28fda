"""Convert a checkpoint between the released layout and orbax, losslessly, quantise it, or export a run as a checkpoint.

qil convert to-orbax SRC DST [--overwrite]
qil convert to-diffusers SRC DST [--overwrite]
qil convert export RUN DST [--step N] [--no-ema] [--dtype bfloat16]        the same as qil export-run
qil convert quantize SRC DST --dtype int8 [--components transformer]       the same as qil quantize
qil convert dequantize SRC DST [--dtype float32]                           the same as qil dequantize
qil convert dequantize COMFYUI.safetensors DST --base CHECKPOINT
"""

import argparse
import time
from pathlib import Path

from qil_jax.cli import dequantize, export_run, quantize
from qil_jax.cli.commands import COMMANDS
from qil_jax.command_line import Parser
from qil_jax.errors import say
from qil_jax.programs import called, quieten_orbax
from qil_jax.progress import byte_progress

DIRECTIONS = ("to-orbax", "to-diffusers")
OTHERS = {"export": export_run, "quantize": quantize, "dequantize": dequantize}
"""Subcommands that are verbs of their own, too."""
VERBS = {"export": "export-run"}
"""Their names as verbs, where these differ."""


def parsed(argv: list[str]) -> argparse.Namespace:
    """The command line; ends the program if it cannot be followed."""
    parser = Parser(prog=called("convert"), description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, help="what is written")
    for direction in DIRECTIONS:
        convert = commands.add_parser(direction, help=f"convert a checkpoint {direction.replace('-', ' ')}")
        convert.add_argument("source", type=Path, help="folder that holds model_index.json")
        convert.add_argument("destination", type=Path, help="folder to write, which appears whole")
        convert.add_argument("--overwrite", action="store_true", help="replace the checkpoint at the destination")
    for name, other in OTHERS.items():
        other.add_arguments(commands.add_parser(name, help=COMMANDS[VERBS.get(name, name)].about))
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Convert, quantise or export as the command line says; returns 0."""
    arguments = parsed(argv)
    other = OTHERS.get(arguments.command)
    return _convert(arguments) if other is None else other.run(arguments)


def _convert(arguments: argparse.Namespace) -> int:
    quieten_orbax()
    # Heavy imports are deferred until the arguments are valid.
    from qil_jax.weights.convert import to_diffusers, to_orbax

    convert = dict(zip(DIRECTIONS, (to_orbax, to_diffusers), strict=True))[arguments.command]
    began = time.perf_counter()
    with byte_progress() as progress:
        bar = progress.add_task(arguments.command, total=None)
        size = convert(
            arguments.source,
            arguments.destination,
            overwrite=arguments.overwrite,
            on_bytes=lambda done, total: progress.update(bar, advance=done, total=total),
        )
    seconds = time.perf_counter() - began
    say(f"{size / 1e6:,.0f} MB in {seconds:.1f} s to {arguments.destination}")
    return 0
