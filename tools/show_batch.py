"""The first batch that training would see: its shapes in words, its rows as a picture (docs/data.md).

python tools/show_batch.py DATASET [--out batch.png] [--rows 4] [--resolution 640] [--task image-to-layers]
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from qil_jax.data.boxed import over_colour
from qil_jax.data.buckets import BucketConfig
from qil_jax.data.pipeline import TASKS, Batch, Loader, LoaderConfig
from qil_jax.data.sources import SPLIT, open_source
from qil_jax.data.tasks import Task, TaskConfig

CELL, EDGE = 96, 4
GROUND, FRAME = (0.8, 0.8, 0.8), {True: (30, 120, 60), False: (200, 120, 0)}
"""What shows through; and the colour around what the model has to give, and around what it is given."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("dataset", help="what build_dataset.py or make_scenes.py wrote, or folders of PNGs")
    parse.add_argument("--split", default=SPLIT)
    parse.add_argument("--out", type=Path, default=Path("batch.png"))
    parse.add_argument("--rows", type=int, default=4)
    parse.add_argument("--resolution", type=int, default=640)
    parse.add_argument("--task", choices=[task.value for task in Task], default=Task.IMAGE_TO_LAYERS.value)
    parse.add_argument("--seed", type=int, default=0)
    return parse


def main(arguments: list[str] | None = None) -> int:
    """Load a batch; 0 if there is one."""
    args = parser().parse_args(arguments)
    if args.out.exists():
        print(f"{args.out} exists: remove it or give another --out", file=sys.stderr)
        return 2
    try:
        source = open_source(args.dataset, args.split)
        tokens = (args.resolution // 16) ** 2
        config = LoaderConfig(
            rows=min(args.rows, len(source)),
            seed=args.seed,
            tasks=TaskConfig(mix=((Task(args.task), 1.0),)),
            buckets=BucketConfig(resolutions=(args.resolution,), row_tokens=24 * tokens),
        )
        with Loader(source, config) as loader:
            batch = next(loader)
            print(f"{len(source)} records, {loader.plan.steps_per_epoch} steps an epoch")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    describe(batch)
    sheet(batch).save(args.out)
    print(f"wrote {args.out}: green is what the model has to give, orange what it is given")
    return 0


def describe(batch: Batch) -> None:
    """Say what lies where."""
    rows, pictures, height, width, _ = batch.pictures.shape
    print(f"{rows} rows of {pictures} pictures of {width} x {height}; {(batch.segments == 0).mean():.0%} padding")
    for row in range(rows):
        for place, index in enumerate(batch.records[row].tolist()):
            if index >= 0:
                layers = batch.layer_indices[row][batch.segments[row] == place + 1].tolist()
                task = TASKS[batch.tasks[row]].value
                print(f"  row {row}: record {index}, {task}, layer indices {layers}: {batch.captions[row][place]!r}")


def sheet(batch: Batch) -> Image.Image:
    """A row of cells per row of the batch."""
    rows, pictures = batch.segments.shape
    whole = Image.new("RGB", (pictures * CELL, rows * CELL), "white")
    draw = ImageDraw.Draw(whole)
    for row, column in np.argwhere(batch.segments > 0).tolist():
        cell = Image.fromarray(over_colour(batch.pictures[row, column], GROUND)).convert("RGB")
        cell.thumbnail((CELL - 2 * EDGE, CELL - 2 * EDGE))
        left, top = column * CELL, row * CELL
        colour = FRAME[bool(batch.targets[row, column])]
        draw.rectangle((left + 1, top + 1, left + CELL - 2, top + CELL - 2), outline=colour, width=2)
        whole.paste(cell, (left + (CELL - cell.width) // 2, top + (CELL - cell.height) // 2))
    return whole


if __name__ == "__main__":
    sys.exit(main())
