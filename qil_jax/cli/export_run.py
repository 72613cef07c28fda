"""Write a checkpoint of a run of training, finished or not, as a checkpoint folder.

qil export-run RUN DST [--step N] [--no-ema] [--dtype bfloat16]
"""

import argparse
import os
import time
from pathlib import Path

from qil_jax.choices import Precision
from qil_jax.command_line import Parser, one_of
from qil_jax.errors import say
from qil_jax.programs import called, quieten_orbax
from qil_jax.progress import byte_progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    add("run", type=Path, help="folder of the run; its config's relative paths begin in this directory")
    add("destination", type=Path, help="folder to write, which appears whole")
    add("--step", type=int, metavar="N", help="step of the run's checkpoint (default: the newest)")
    add(
        "--ema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the moving average of the trained parameters, or the parameters themselves (default: --ema)",
    )
    add("--dtype", **one_of(Precision), default=Precision.FP32, help="of the trained tensors (default float32)")


def main(argv: list[str]) -> int:
    """Export the run; returns 0."""
    parser = Parser(prog=called("export-run"), description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    """Export as the command line says; returns 0."""
    quieten_orbax()
    os.environ["JAX_PLATFORMS"] = "cpu"  # accelerators may be busy with the run
    from qil_jax.training.export_saved import export_saved
    from qil_jax.training.state_tree import Weights

    weights = Weights.EMA if arguments.ema else Weights.PARAMS
    began = time.perf_counter()
    with byte_progress() as progress:
        bar = progress.add_task("export", total=None)
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
