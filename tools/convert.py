"""Convert a checkpoint between the released layout and orbax, losslessly, quantise it, or export a run as a checkpoint.

python tools/convert.py to-orbax SRC DST [--overwrite]
python tools/convert.py to-diffusers SRC DST [--overwrite]
python tools/convert.py export RUN DST [--step N] [--no-ema] [--dtype bfloat16]
python tools/convert.py quantize SRC DST --dtype int8 [--components transformer]
python tools/convert.py dequantize SRC DST [--dtype float32]
python tools/convert.py dequantize COMFYUI.safetensors DST --base CHECKPOINT
"""

import argparse
import logging
import os
import time
from pathlib import Path

from qil_jax.command_line import Parser
from qil_jax.errors import say
from qil_jax.programs import run_main
from tools.progress import byte_progress
from tools.quantize import DEQUANTIZE, QUANTIZE, add_quantize, dequantize, quantize

DIRECTIONS = ("to-orbax", "to-diffusers")
EXPORT = "export"
DTYPES = ("float32", "bfloat16")


def parsed(argv: list[str]) -> argparse.Namespace:
    """The command line; ends the program if it cannot be followed."""
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, help="what is written")
    for direction in DIRECTIONS:
        convert = commands.add_parser(direction, help=f"convert a checkpoint {direction.replace('-', ' ')}")
        convert.add_argument("source", type=Path, help="folder that holds model_index.json")
        convert.add_argument("destination", type=Path, help="folder to write, which appears whole")
        convert.add_argument("--overwrite", action="store_true", help="replace the checkpoint at the destination")
    export = commands.add_parser(EXPORT, help="export a run of train.py, finished or not, as a checkpoint")
    export.add_argument("run", type=Path, help="folder of the run; its config's relative paths begin in this directory")
    export.add_argument("destination", type=Path, help="folder to write, which appears whole")
    export.add_argument("--step", type=int, metavar="N", help="step of the run's checkpoint (default: the newest)")
    export.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the moving average of the trained parameters, or the parameters themselves (default: --ema)",
    )
    export.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the trained tensors (default float32)")
    add_quantize(commands)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Convert or export as the command line says; returns 0."""
    arguments = parsed(argv)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns about a merge in which nothing is merged
    return {EXPORT: _export, QUANTIZE: quantize, DEQUANTIZE: dequantize}.get(arguments.command, _convert)(arguments)


def _convert(arguments: argparse.Namespace) -> int:
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


def _export(arguments: argparse.Namespace) -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"  # accelerators may be busy with the run
    from qil_jax.training.export_saved import export_saved
    from qil_jax.training.state_tree import Weights

    weights = Weights.EMA if arguments.ema else Weights.PARAMS
    began = time.perf_counter()
    with byte_progress() as progress:
        bar = progress.add_task(EXPORT, total=None)
        step = export_saved(
            arguments.run,
            arguments.destination,
            step=arguments.step,
            weights=weights,
            dtype=arguments.dtype,
            on_bytes=lambda done, total: progress.update(bar, advance=done, total=total),
        )
    kind = "EMA" if arguments.ema else "parameters"
    say(f"{kind} of step {step} in {time.perf_counter() - began:.1f} s to {arguments.destination}")
    return 0


if __name__ == "__main__":
    run_main(main)
