"""What `qil show-batch` shows: the description and the picture of a batch."""

import io
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageOps

from qil_jax.errors import say
from qil_jax.files import write_whole
from qil_jax.layers.compositing import over_colour
from qil_jax.layers.sheets import arranged
from qil_jax.loader.batch import TASKS, Batch
from qil_jax.loader.buckets import BucketConfig
from qil_jax.loader.config import LoaderConfig
from qil_jax.loader.loader import Loader
from qil_jax.loader.tasks import Task, TaskConfig
from qil_jax.records.sources import open_source

CELL, EDGE = 88, 2
GROUND, FRAME = (0.8, 0.8, 0.8), {True: (30, 120, 60), False: (200, 120, 0)}
"""Colours: behind the layers; around the targets (True) and around the conditions (False) of the model."""


def show(dataset: str, split: str, out: Path, *, rows: int, resolution: int, task: Task, seed: int) -> None:
    """Load the first batch of a dataset, describe it, and write its picture.

    Args:
      dataset: dataset, or folders of PNGs, as `open_source` takes them.
      split: split of the dataset.
      out: the picture's file.
      rows: number of rows of the batch; fewer if there are fewer records.
      resolution: size bucket in pixels.
      task: task of all samples.
      seed: seed of order, crops and colours.

    Raises:
      QilError, OSError: if there is no such batch, or no place for the picture.
    """
    source = open_source(dataset, split)
    tokens = (resolution // 16) ** 2
    config = LoaderConfig(
        rows=min(rows, len(source)),
        seed=seed,
        tasks=TaskConfig(mix=((task, 1.0),)),
        buckets=BucketConfig(resolutions=(resolution,), row_tokens=24 * tokens),
    )
    with Loader.of_records(source, config) as loader:
        batch = next(loader)
        say(f"{len(source)} records, {loader.plan.steps_per_epoch} steps an epoch")
    describe(batch)
    stream = io.BytesIO()
    sheet(batch).save(stream, "PNG")
    write_whole(epath.Path(out), stream.getvalue())


def describe(batch: Batch) -> None:
    """Print shapes, tasks, layer indices and captions of a batch."""
    rows, pictures, height, width, _ = batch.pictures.shape
    say(f"{rows} rows of {pictures} pictures of {width} x {height}; {(batch.segments == 0).mean():.0%} padding")
    for row in range(rows):
        for place, index in enumerate(batch.records[row].tolist()):
            if index >= 0:
                layers = batch.layer_indices[row][batch.segments[row] == place + 1].tolist()
                task = TASKS[batch.tasks[row]].value
                say(f"  row {row}: record {index}, {task}, layer indices {layers}: {batch.captions[row][place]!r}")


def sheet(batch: Batch) -> Image.Image:
    """The pictures of a batch, one row of cells for each of its rows."""
    shown = [np.flatnonzero(segments) for segments in batch.segments]
    pairs = [zip(batch.pictures[row, where], batch.targets[row, where], strict=True) for row, where in enumerate(shown)]
    return arranged([[cell(picture, bool(target)) for picture, target in row] for row in pairs])


def cell(picture: UInt8[np.ndarray, "y x 4"], target: bool) -> Image.Image:
    """A picture made small, in the frame of a target or of a condition."""
    small = Image.fromarray(over_colour(picture, GROUND)).convert("RGB")
    small.thumbnail((CELL, CELL))
    return ImageOps.expand(small, EDGE, FRAME[target])
