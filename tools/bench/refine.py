"""Layers at the size of their picture: refined against interpolated, on scenes whose true layers are known.

Scenes of 512 pixels with text, glass, shadows and photographs, from assets of the test split. Their layers are reduced,
brought back to the scene's size, and compared with the true ones where shares differ among neighbours when reduced.
Then the shipped model's own layers of scenes, by the LayerD protocol; and time and memory for large pictures.
"""

import argparse
import dataclasses
import functools
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import PIL
from jaxtyping import UInt8
from PIL import Image

from qil_jax.evaluation.layers import mean_scores, score_stacks
from qil_jax.inference.images import bucket_size
from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import Request
from qil_jax.layers import refinement, shares, windows
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite_8bit
from qil_jax.layers.filtering import resize_layers
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.scenes.assets import Assets, load_assets
from qil_jax.scenes.scene import VARIED, SceneConfig, make_scene
from tools.bench import harness

SIDE, QUALITY = 512, 80
Layers = UInt8[np.ndarray, "l y x 4"]
Way = Callable[[LayeredImage, np.ndarray], Layers]


def bicubic(low: LayeredImage, picture: np.ndarray) -> Layers:
    """Every layer interpolated by itself, colours premultiplied."""
    size = picture.shape[1::-1]
    return np.stack([np.asarray(Image.fromarray(x, "RGBA").resize(size, Image.Resampling.BICUBIC)) for x in low.layers])


def refined(**constants: Any) -> Way:
    """Refinement with other values in place of what its module has."""

    def way(low: LayeredImage, picture: np.ndarray) -> Layers:
        with ExitStack() as stack:
            for name, value in constants.items():
                stack.enter_context(mock.patch.object(refinement, name, value))
            return refinement.refine(low, picture)[0].layers

    return way


def unmoved(stack: Layers, picture: np.ndarray) -> Layers:
    """In place of `reassigned`."""
    return stack


JPEG = f"refined, a JPEG of quality {QUALITY}"
WAYS: dict[str, Way] = {"bicubic": bicubic, "refined": refined(), JPEG: refined()}
CANDIDATES: dict[str, Way] = {
    "refined": refined(),
    "one level, no correction, eps 1e-4": refined(CORRECTIONS=0, EPSILON=1e-4, _factors=lambda scale: [1]),
    "one level, no correction, eps 1e-5": refined(CORRECTIONS=0, _factors=lambda scale: [1]),
    "no correction": refined(CORRECTIONS=0),
    "two levels": refined(_factors=lambda scale: [1, 2]),
    "slopes shrink three times as much": refined(SHRINKING=3.0),
    "half the slack": refined(SLACK=0.5),
    "nothing moved": refined(reassigned=unmoved),
}
FEWER = 5
"""Candidates are measured on one scene of so many."""
HEAD = ("layers", "way", "shares", "gradient", "colour", "soft alphas", "off by > 1", "s a scene")


def measure(arguments: argparse.Namespace) -> int:
    """The benchmark `refine`; returns 0."""
    if arguments.only:
        wide, high, count = map(int, arguments.only.split("x"))
        print(*large(wide, high, count))
        return 0
    write = arguments.write
    with ProcessPoolExecutor(os.cpu_count()) as processes:
        fewer = -(-arguments.count // FEWER)
        for ways, count, mark in ((WAYS, arguments.count, "scenes"), (CANDIDATES, fewer, "candidates")):
            rows = [row for times in (4, 8) for row in restored(arguments.assets, ways, count, times, processes)]
            note = f"Means of {count} scenes; levels of 255. {harness.machine(np, PIL)}"
            harness.report(HEAD, rows, write=write, mark=f"bench refine {mark}", note=note)
    head = ("layers of the shipped model", *(f"{name}, {n} merges" for n in (0, 5) for name in ("RGB L1", "IoU")))
    note = f"Means of {arguments.results} scenes of {SIDE} pixels, by the LayerD protocol."
    harness.report(head, by_model(arguments), write=write, mark="bench refine model", note=note)
    rows = []
    for size in ("2000x1500x4", "2828x2121x4", "4000x3000x4", "4000x3000x8"):
        wide, high, count = size.split("x")
        seconds, memory = harness.numbers_printed_by("refine", "--only", size)
        pixels = f"{int(wide) * int(high) / 1e6:.0f} MP"
        rows.append((f"{wide} x {high} ({pixels})", count, f"{seconds:.1f} s", f"{memory:.2f} GB"))
    harness.report(("picture", "layers", "time", "peak memory"), rows, write=write, mark="bench refine size", note="")
    return 0


def restored(
    assets: Path, ways: Mapping[str, Way], count: int, times: int, processes: ProcessPoolExecutor
) -> list[tuple[str, ...]]:
    """Rows for layers that were reduced some times and restored."""
    measured = functools.partial(of_scene, assets=assets, names=tuple(ways), times=times)
    found = list(processes.map(measured, range(count)))
    rows = []
    for name in found[0]:
        share, gradient, colour, soft, off, seconds = np.nanmean([of[name] for of in found], axis=0)
        figures = f"{share:.2f}", f"{gradient:.2f}", f"{colour:.2f}", f"{soft:.2f}", f"{off:.1%}", f"{seconds:.2f}"
        rows.append((f"reduced {times} times", name, *figures))
    return rows


def of_scene(seed: int, *, assets: Path, names: Sequence[str], times: int) -> dict[str, tuple[float, ...]]:
    """Errors and seconds of each way for a scene."""
    truth = make_scene(seed, SceneConfig(side=SIDE), assets_of(assets)).to_layered_image()
    low = dataclasses.replace(truth, layers=np.stack([reduced(layer, times) for layer in truth.layers]))
    picture, found = truth.composite_8bit(), {}
    for name in names:
        shown = as_jpeg(picture) if name == JPEG else picture
        began = time.perf_counter()
        layers = (WAYS | CANDIDATES)[name](low, shown)
        seconds = time.perf_counter() - began
        found[name] = (*errors(layers, truth.layers, low.layers, shown), seconds)
    return found


@functools.cache
def assets_of(folder: Path) -> Assets:
    """Assets of the test split, read once by each process."""
    return load_assets(folder, "test")


def reduced(layer: UInt8[np.ndarray, "y x 4"], times: int) -> UInt8[np.ndarray, "h w 4"]:
    """A layer whose pixels are means of `times` x `times` pixels."""
    size = layer.shape[1] // times, layer.shape[0] // times
    return np.asarray(Image.fromarray(layer, "RGBA").resize(size, Image.Resampling.BOX))


def errors(layers: Layers, truth: Layers, low: Layers, picture: UInt8[np.ndarray, "y x 4"]) -> tuple[float, ...]:
    """Errors in levels of 255.

    Of the shares and of their gradients near edges; of colours there, weighted by the true shares; of alphas where the
    reduced ones are neither 0 nor 255 among neighbours; and the share of pixels whose blend is more than a level off.
    """
    ours, true, coarse = (shares.shares_of(x[..., 3].astype(np.float32) / 255) for x in (layers, truth, low))
    times = len(picture) // low.shape[1]
    grown = lambda mask: np.kron(mask, np.ones((times, times), bool))
    edge = grown(shares.has_edge(coarse))
    apart = ours[:-1] - true[:-1]
    gradient = np.add(*(np.abs(np.diff(apart, axis=axis, append=0))[:, edge] for axis in (1, 2)))
    colour = np.abs(layers[..., :3].astype(np.float32) - truth[..., :3]).mean(axis=-1)[:, edge]
    seen = true[:-1, edge]
    alphas = low[..., 3]
    least, most = windows.neighbours(alphas)
    soft = np.stack([grown(mask) for mask in (least > 8) & (most < 247)])
    alpha = np.abs(layers[..., 3].astype(np.float32) - truth[..., 3])[soft]
    blend = composite_8bit([BoxedLayer(pixels=x, left=0, top=0, name="") for x in layers], picture.shape[1::-1])
    return (
        255 * float(np.abs(apart[:, edge]).mean()),
        255 * float(gradient.mean()),
        float((colour * seen).sum() / seen.sum()),
        float(alpha.mean()) if alpha.size else np.nan,
        float((np.abs(blend.astype(int) - picture).max(axis=-1) > 1).mean()),
    )


def as_jpeg(picture: UInt8[np.ndarray, "y x 4"]) -> UInt8[np.ndarray, "y x 4"]:
    """An opaque picture after compression."""
    stream = io.BytesIO()
    Image.fromarray(picture, "RGBA").convert("RGB").save(stream, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(stream).convert("RGBA"))


def by_model(arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    """Rows for what the shipped model makes of scenes of its own kind."""
    assets, pipeline = load_assets(arguments.assets, "test"), Pipeline.load()
    scores: dict[str, list] = {}
    for seed in range(arguments.results):
        truth = make_scene(seed, dataclasses.replace(VARIED, side=SIDE), assets).to_layered_image()
        picture = truth.composite_8bit()
        (made,) = pipeline.decompose([Request(image=Image.fromarray(picture), layers=len(truth.names))])
        plain = resize_layers(made.layered.layers, (SIDE, SIDE))
        stacks = {"interpolated": plain} | {
            name: CANDIDATES[name](made.layered, picture) for name in ("nothing moved", "refined")
        }
        for name, layers in stacks.items():
            scores.setdefault(name, []).append(score_stacks(list(layers), list(truth.layers)))
    rows = []
    for name, found in scores.items():
        means = mean_scores(found)
        rows.append((name, *(f"{value:.3f}" for n in (0, 5) for value in (means[n].l1, means[n].iou))))
    return rows


def large(wide: int, high: int, count: int) -> tuple[float, float]:
    """Seconds and GB of memory for a picture of this size and layers of the released one."""
    scene = make_scene(3, SceneConfig(side=1024)).to_layered_image().layers
    upper = [np.roll(scene[1 + i % (len(scene) - 1)], 97 * i, (0, 1)) for i in range(count - 1)]
    size = bucket_size(wide, high, 640)
    low = np.stack([np.asarray(Image.fromarray(x, "RGBA").resize(size)) for x in (scene[0], *upper)])
    layered = LayeredImage(layers=low, names=tuple(map(str, range(count))))
    picture = np.asarray(Image.fromarray(layered.composite_8bit(), "RGBA").resize((wide, high)))
    return harness.duration(lambda: refinement.refine(layered, picture)), harness.peak_memory()
