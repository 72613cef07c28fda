"""Write a quantised checkpoint in full precision; what was rounded does not come back.

qil dequantize SRC DST [--dtype float32]
qil dequantize COMFYUI.safetensors DST --base CHECKPOINT
"""

import argparse
import time
from pathlib import Path

from qil_jax.choices import Precision
from qil_jax.command_line import Parser, one_of
from qil_jax.errors import QilError, say
from qil_jax.programs import called, quieten_orbax
from qil_jax.progress import byte_progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    source = "quantised checkpoint folder; or safetensors file of a transformer in ComfyUI's fp8"
    add("source", type=Path, help=source)
    add("destination", type=Path, help="folder to write, which appears whole")
    add("--dtype", **one_of(Precision), default=Precision.BF16, help="of these weights (default bfloat16)")
    add("--base", type=Path, help="checkpoint folder with all that a file lacks")


def main(argv: list[str]) -> int:
    """Write full precision; returns 0."""
    parser = Parser(prog=called("dequantize"), description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    """Write full precision as the command line says; returns 0.

    Raises:
      QilError: if source and --base do not go together.
    """
    source, destination = arguments.source, arguments.destination
    is_file = source.suffix == ".safetensors"
    if is_file != (arguments.base is not None):
        raise QilError("--base: goes with a safetensors file, which needs it" if is_file else "--base: is for a file")
    quieten_orbax()
    from qil_jax.weights.dequantise import dequantise_checkpoint, dequantise_comfy

    began = time.perf_counter()
    with byte_progress() as progress:
        bar = progress.add_task("dequantize", total=None)
        on_bytes = lambda done: progress.advance(bar, done)
        if is_file:
            comfy = dequantise_comfy(source, arguments.base, destination, arguments.dtype, on_bytes=on_bytes)
            what = f"{len(comfy.scales)} weights in float8_e4m3fn, {comfy.scaled} of them with scales"
        else:
            parts = dequantise_checkpoint(source, destination, arguments.dtype, on_bytes=on_bytes)
            what = ", ".join(parts)
    say(f"{what} in {time.perf_counter() - began:.1f} s to {destination}; what was rounded does not come back")
    return 0
