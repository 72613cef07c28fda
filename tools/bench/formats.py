"""Export of 8 layers of 1024 x 1024 pixels, against psd-tools and zlib on the same layers, and exact recomposition.

Then the same layers refined to a photograph's size: time and memory of each format and of a whole result.
"""

import argparse
import functools
import itertools
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL
import psd_tools
from PIL import Image
from psd_tools import PSDImage

from qil_jax.choices import RESOLUTION
from qil_jax.errors import say
from qil_jax.export.format import Format
from qil_jax.export.formats import WRITERS, write
from qil_jax.export.nodes import leaves, nodes_of
from qil_jax.export.result import write_result
from qil_jax.inference.images import bucket_size
from qil_jax.layers.exact import exact
from qil_jax.layers.health import health
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.refinement import refine
from qil_jax.scenes.scene import SceneConfig, make_scene
from tools.bench import harness

SIDE, LAYERS = 1024, 8
LARGE = (4000, 3000)
"""Width and height of a photograph."""
RESULT = "a result with its PSD, sheet and masks"


def image() -> LayeredImage:
    """The layers of drawn scenes: a background, and things in front of it."""
    scenes = (make_scene(seed, SceneConfig(side=SIDE, most=6)).to_layered_image() for seed in itertools.count())
    found = list(next(scenes).layers)
    while len(found) < LAYERS:
        found.extend(next(scenes).layers[1:])
    return LayeredImage(layers=np.stack(found[:LAYERS]), names=tuple(f"Layer {i}" for i in range(1, LAYERS + 1)))


def by_psd_tools(tree: LayerTree, file: Path) -> None:
    """A PSD of the same boxes as psd-tools makes and saves it by itself."""
    document = PSDImage.new("RGBA", tree.layered.size, depth=8)
    for layer in leaves(nodes_of(tree)):
        document.create_pixel_layer(Image.fromarray(layer.pixels, "RGBA"), layer.name, layer.top, layer.left)
    document.save(file)


def by_zlib(tree: LayerTree) -> int:
    """Bytes of the layers as zlib packs them, at its usual level."""
    return sum(len(zlib.compress(layer.tobytes())) for layer in tree.layered.layers)


def measure(arguments: argparse.Namespace) -> int:
    """The benchmark `formats`; returns 0."""
    if arguments.only:
        say(" ".join(map(str, itertools.chain(*large().values()))))
        return 0
    layered = image()
    tree = LayerTree.of(layered)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = (folder / str(i) for i in itertools.count())
        jobs: dict[str, Callable[[], object]] = {
            "psd-tools' own PSD": lambda: by_psd_tools(tree, next(files).with_suffix(".psd")),
            "zlib alone, raw pixels": lambda: by_zlib(tree),
            **{str(format): writing(format, tree, files) for format in Format if format is not Format.PNG},
        }
        times: dict[str, list[float]] = {job: [] for job in jobs}
        for _ in range(arguments.repeats):  # in turn, so that all see the same load
            for job, run in jobs.items():
                times[job].append(harness.duration(run))
    medians = {job: harness.median(seconds) for job, seconds in times.items()}
    target = np.clip(layered.composite_8bit().astype(int) + 3, 0, 255).astype(np.uint8)
    medians["exact recomposition"] = harness.duration(lambda: exact(layered, target))
    medians["health"] = harness.duration(lambda: health(list(layered.layers)))
    against = {"psd": "psd-tools' own PSD", "ora": "zlib alone, raw pixels", "zip": "zlib alone, raw pixels"}
    rows = [
        (job, f"{seconds:.2f} s", f"{seconds / medians[against[job]]:.2f} of {against[job]}" if job in against else "")
        for job, seconds in medians.items()
    ]
    head = (f"{LAYERS} layers of {SIDE} x {SIDE}", "median", "ratio")
    note = harness.machine(np, PIL, psd_tools)
    harness.report(head, rows, write=arguments.write, mark="bench formats", note=note)
    numbers = harness.numbers_printed_by("formats", "--only", "large")
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    jobs_large = [*map(str, WRITERS), RESULT]
    rows = [(job, f"{s:.1f} s", f"{peak:.2f} GB") for job, (s, peak) in zip(jobs_large, pairs, strict=True)]
    head = (f"{LAYERS} layers of {LARGE[0]} x {LARGE[1]}", "time", "peak memory")
    harness.report(head, rows, write=arguments.write, mark="bench formats large", note=note)
    return 0


def large() -> dict[str, tuple[float, float]]:
    """Seconds and GB of peak memory, the layers' included, to write refined layers in each format and as a result."""
    drawn = image()
    picture = np.asarray(Image.fromarray(drawn.composite_8bit(), "RGBA").resize(LARGE))
    bucket = bucket_size(*LARGE, RESOLUTION)
    low = np.stack([np.asarray(Image.fromarray(layer, "RGBA").resize(bucket)) for layer in drawn.layers])
    layered, _ = refine(LayeredImage(layers=low, names=drawn.names), picture)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        jobs: dict[str, Callable[[], object]] = {
            str(format): functools.partial(write, layered, place / f"a.{format}", format) for format in WRITERS
        }
        jobs[RESULT] = lambda: write_result(place / "result", layered, picture, {}, hidden_masks=True)
        return {job: measured(run) for job, run in jobs.items()}


def measured(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a call, and the largest resident memory of this process meanwhile in GB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    return harness.duration(run), harness.peak_memory()


def writing(format: Format, tree: LayerTree, files: Iterator[Path]) -> Callable[[], object]:
    """The writing of one format to a new file."""
    return lambda: WRITERS[format](tree, next(files).with_suffix(f".{format}"))
