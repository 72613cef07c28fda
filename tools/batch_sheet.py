"""Implementation of show_batch.py: the description and the picture of a batch."""

import argparse
import io

import numpy as np
from etils import epath
from PIL import Image, ImageDraw

from qil_jax.files import write_whole
from qil_jax.layers.compositing import over_colour
from qil_jax.loader.batch import TASKS, Batch
from qil_jax.loader.buckets import BucketConfig
from qil_jax.loader.config import LoaderConfig
from qil_jax.loader.loader import Loader
from qil_jax.loader.tasks import Task, TaskConfig
from qil_jax.records.sources import open_source

CELL, EDGE = 96, 4
GROUND, FRAME = (0.8, 0.8, 0.8), {True: (30, 120, 60), False: (200, 120, 0)}
"""Colours: behind the layers; around the targets (True) and around the conditions (False) of the model."""


def show(args: argparse.Namespace) -> None:
    """Load the batch that the command line asks for, describe it, and write its picture.

    Raises:
      QilError, OSError: if there is no such batch, or no place for the picture.
    """
    source = open_source(args.dataset, args.split)
    tokens = (args.resolution // 16) ** 2
    config = LoaderConfig(
        rows=min(args.rows, len(source)),
        seed=args.seed,
        tasks=TaskConfig(mix=((Task(args.task), 1.0),)),
        buckets=BucketConfig(resolutions=(args.resolution,), row_tokens=24 * tokens),
    )
    with Loader.of_records(source, config) as loader:
        batch = next(loader)
        print(f"{len(source)} records, {loader.plan.steps_per_epoch} steps an epoch")
    describe(batch)
    stream = io.BytesIO()
    sheet(batch).save(stream, "PNG")
    write_whole(epath.Path(args.out), stream.getvalue())


def describe(batch: Batch) -> None:
    """Print shapes, tasks, layer indices and captions of a batch."""
    rows, pictures, height, width, _ = batch.pictures.shape
    print(f"{rows} rows of {pictures} pictures of {width} x {height}; {(batch.segments == 0).mean():.0%} padding")
    for row in range(rows):
        for place, index in enumerate(batch.records[row].tolist()):
            if index >= 0:
                layers = batch.layer_indices[row][batch.segments[row] == place + 1].tolist()
                task = TASKS[batch.tasks[row]].value
                print(f"  row {row}: record {index}, {task}, layer indices {layers}: {batch.captions[row][place]!r}")


def sheet(batch: Batch) -> Image.Image:
    """The pictures of a batch, one row of cells for each of its rows."""
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
