"""Throughput of the loader, from stored records to batches.

Samples are 4-layer scenes with photographs as grounds, rendered at 1024 pixels and loaded at 640. All times are of one
thread unless a row says otherwise; folders of PNGs are measured on the same scenes, in alternation.
"""

import argparse
import dataclasses
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from qil_jax.documents.dataset import BuildInfo, Contents, write_dataset
from qil_jax.layers.compositing import composite_8bit
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.resize import choose_crop, resized
from qil_jax.loader.buckets import BucketConfig
from qil_jax.loader.config import LoaderConfig, Workers
from qil_jax.loader.loader import Loader
from qil_jax.loader.samples import make_sample
from qil_jax.loader.tasks import Task, TaskConfig
from qil_jax.records.record import Record, decode, encode
from qil_jax.records.sources import DatasetSource, FolderSource, examples, open_source
from qil_jax.scenes.assets import Asset, Assets
from qil_jax.scenes.scene import SceneConfig, make_scene
from tools.bench import harness

SIDE, RESOLUTION, LAYERS = 1024, 640, 4

CHIPS, HOSTS, CHIP_FLOPS, UTILISATION = 64, 16, 459e12, 0.4
"""v5p-128: 128 cores are 64 chips on 16 hosts; bf16 peak of a chip; share of it that training is planned to reach."""


def planned_samples_per_second() -> float:
    """Samples per second that v5p-128 consumes, by arithmetic: image-to-layers at 640 pixels with 4 layers.

    A token of the image stream meets 6.8 B of the 20.4 B parameters (the text stream and the modulation have as many
    each); 6 FLOP per parameter and token, 12 per pair of tokens, width and block for attention, a third more for remat.
    """
    tokens, parameters, blocks, width = (LAYERS + 2) * 1600, 6.8e9, 60, 3072
    flops = (6 * parameters * tokens + 12 * blocks * width * tokens**2) * 4 / 3
    return CHIPS * CHIP_FLOPS * UTILISATION / flops


def scenes(count: int) -> list[Record]:
    """Scenes of exactly four layers, with the repository's photographs as grounds."""
    pictures = [
        np.asarray(Image.open(file).convert("RGBA")) for file in sorted((harness.ROOT / "examples").glob("*.png"))
    ]
    grounds = [Asset(pixels=x, name="a photograph", package="examples", licence="CC0-1.0") for x in pictures]
    made: list[Record] = []
    seed = 0
    while len(made) < count:
        scene = make_scene(seed, SceneConfig(side=SIDE), Assets(backgrounds=grounds))
        made += [scene] if len(scene.layers) == LAYERS else []
        seed += 1
    return made


def write_sources(records: list[Record], folder: Path) -> tuple[DatasetSource, FolderSource]:
    """Write identical records as a dataset and as folders of PNGs."""
    splits = {"train": [(f"{i:06d}", (record,)) for i, record in enumerate(records)]}
    write_dataset(Contents(splits=splits, make=encode), BuildInfo(), epath.Path(folder / "records"))
    for i, record in enumerate(records):
        record.to_layered_image().save(folder / "pngs" / f"{i:06d}")
    dataset, pngs = open_source(folder / "records"), open_source(folder / "pngs")
    assert isinstance(dataset, DatasetSource) and isinstance(pngs, FolderSource)
    return dataset, pngs


def seconds(work: Callable[[Any], Any], items: list[Any]) -> float:
    """Median seconds that `work` takes for one item."""
    cycled = itertools.cycle(items)
    (found,) = harness.alternate({"": lambda: work(next(cycled))}, len(items)).values()
    return harness.median(found)


def stages(dataset: DatasetSource, count: int) -> dict[str, float]:
    """Median seconds of each stage for one sample."""
    raw = examples(dataset.folder, dataset.split)
    size = RESOLUTION, RESOLUTION
    records = [dataset[i] for i in range(count)]
    crops = [choose_crop(record.size, size, None) for record in records]
    small = [
        dataclasses.replace(r, layers=tuple(resized(r.layers, r.size, crop=crop, target=size)), size=size)
        for r, crop in zip(records, crops, strict=True)
    ]
    rng, tasks = np.random.default_rng(0), TaskConfig()
    return {
        "read and parse": seconds(lambda i: raw[i], list(range(count))),
        "decode pixels": seconds(decode, [raw[i] for i in range(count)]),
        "crop and resize": seconds(
            lambda i: resized(records[i].layers, (SIDE, SIDE), crop=crops[i], target=size), list(range(count))
        ),
        "composite": seconds(lambda r: composite_8bit(r.layers, size), small),
        "canvases and condition": seconds(lambda r: make_sample(Task.IMAGE_TO_LAYERS, r, tasks, rng), small)
        - seconds(lambda r: composite_8bit(r.layers, size), small),
    }


def decoding(dataset: DatasetSource, pngs: FolderSource, count: int) -> dict[str, list[float]]:
    """Seconds to decode all layers of a sample from a record and from PNGs, sample by sample."""
    folders, numbers = itertools.cycle(pngs.folders[:count]), itertools.cycle(range(count))
    sides = {
        "PNGs": lambda: LayeredImage.load(next(folders)),
        "record": lambda: dataset[next(numbers)].to_layered_image(),
    }
    return harness.alternate(sides, count)


def loading(dataset: DatasetSource, workers: Workers, samples: int) -> float:
    """Samples per second that a loader yields."""
    buckets = BucketConfig(resolutions=(RESOLUTION,), row_tokens=6 * 1600)
    config = LoaderConfig(rows=2, buckets=buckets)
    with Loader.of_records(dataset, config, workers=workers) as loader:
        for _ in range(4):
            next(loader)
        began, seen = time.perf_counter(), 0
        while seen < samples:
            seen += int((next(loader).records >= 0).sum())
        return seen / (time.perf_counter() - began)


def measure(arguments: argparse.Namespace) -> int:
    """The benchmark `data`; returns 0."""
    count = arguments.samples
    with tempfile.TemporaryDirectory() as name:
        dataset, pngs = write_sources(scenes(count), Path(name))
        cost = stages(dataset, count)
        decoded = decoding(dataset, pngs, count)
        one = loading(dataset, Workers(threads=1, ahead=1), 2 * count)
        cores = len(os.sched_getaffinity(0))
        threads = loading(dataset, Workers(threads=cores, ahead=2), 4 * count)
        processes = loading(dataset, Workers(processes=cores, threads=1, ahead=2), 4 * count)
    needed = planned_samples_per_second()
    ratio, _, extent = harness.times_faster(decoded["record"], decoded["PNGs"]).partition(" ")
    rows = [
        *((stage, f"{1e3 * value:.1f} ms") for stage, value in cost.items()),
        ("all stages", f"{1e3 * sum(cost.values()):.1f} ms"),
        ("loader, one thread", f"{one:.1f} samples/s"),
        (f"loader, {cores} threads", f"{threads:.1f} samples/s, {threads / cores:.1f} per core"),
        (f"loader, {cores} worker processes", f"{processes:.1f} samples/s, {processes / cores:.1f} per core"),
        ("all layers from a record, against a folder of PNGs", f"{ratio} times faster {extent}"),
        ("v5p-128 consumes, by arithmetic", f"{needed:.0f} samples/s, {needed / HOSTS:.1f} per host"),
        ("cores that feed it, at the rate of worker processes", f"{needed / (processes / cores):.1f} of all its hosts"),
    ]
    harness.report(("4-layer samples at 640 pixels", ""), rows, write=arguments.write, mark="bench data", note="")
    return 0
