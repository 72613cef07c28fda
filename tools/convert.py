"""Convert a checkpoint between the released layout and orbax, losslessly.

python tools/convert.py to-orbax SRC DST [--overwrite]
python tools/convert.py to-diffusers SRC DST [--overwrite]
"""

import argparse
import logging
import sys
import time
from functools import cache
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from qil_jax.weights.convert import checkpoint_bytes, to_diffusers, to_orbax

DIRECTIONS = {"to-orbax": to_orbax, "to-diffusers": to_diffusers}


def main(argv: list[str]) -> int:
    """Convert; returns 2 when the conversion is refused."""
    parser = argparse.ArgumentParser(description="Convert a checkpoint between the released layout and orbax.")
    parser.add_argument("direction", choices=DIRECTIONS)
    parser.add_argument("source", type=Path, help="folder that holds model_index.json")
    parser.add_argument("destination", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint at the destination")
    arguments = parser.parse_args(argv)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns of merging what there is nothing of
    began = time.perf_counter()
    try:
        total = cache(lambda: checkpoint_bytes(arguments.source))  # asked once the source is known to be sound
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, TimeRemainingColumn(), disable=not sys.stdout.isatty()) as progress:
            bar = progress.add_task(arguments.direction, total=None)
            DIRECTIONS[arguments.direction](
                arguments.source,
                arguments.destination,
                overwrite=arguments.overwrite,
                on_bytes=lambda done: progress.update(bar, advance=done, total=total()),
            )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    seconds = time.perf_counter() - began
    print(f"{total() / 1e6:,.0f} MB in {seconds:.1f} s to {arguments.destination}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
