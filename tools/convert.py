"""Convert a checkpoint between the released layout and orbax, losslessly.

python tools/convert.py to-orbax SRC DST [--overwrite]
python tools/convert.py to-diffusers SRC DST [--overwrite]
"""

import logging
import sys
import time
from functools import cache
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from qil_jax.command_line import Parser
from qil_jax.programs import run_main

DIRECTIONS = ("to-orbax", "to-diffusers")


def main(argv: list[str]) -> int:
    """Convert as the command line says; returns 0."""
    parser = Parser(description=__doc__)
    parser.add_argument("direction", choices=DIRECTIONS, help="the layout of the destination")
    parser.add_argument("source", type=Path, help="folder that holds model_index.json")
    parser.add_argument("destination", type=Path, help="folder to write, which appears whole")
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint at the destination")
    arguments = parser.parse_args(argv)
    # Heavy imports are deferred until the arguments are valid.
    from qil_jax.weights.convert import checkpoint_bytes, to_diffusers, to_orbax

    convert = dict(zip(DIRECTIONS, (to_orbax, to_diffusers), strict=True))[arguments.direction]
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns about a merge in which nothing is merged
    began = time.perf_counter()
    total = cache(lambda: checkpoint_bytes(arguments.source))  # read once the source is known to be sound
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task(arguments.direction, total=None)
        convert(
            arguments.source,
            arguments.destination,
            overwrite=arguments.overwrite,
            on_bytes=lambda done: progress.update(bar, advance=done, total=total()),
        )
    seconds = time.perf_counter() - began
    print(f"{total() / 1e6:,.0f} MB in {seconds:.1f} s to {arguments.destination}")
    return 0


if __name__ == "__main__":
    run_main(main)
