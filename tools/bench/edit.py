"""Replay of a script of 50 operations, of all kinds but refine, on 8 layers of 1024 x 1024 pixels without a margin."""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from qil_jax.editing import script
from qil_jax.editing.script import Operations
from qil_jax.editing.stack import Stack
from qil_jax.layers.layered_image import LayeredImage
from tools.bench import harness

SIDE, LAYERS, OPERATIONS = 1024, 8, 50
KINDS = {
    "move": {"dx": 17, "dy": -40},
    "resize": {"width": 900, "height": 1000},
    "rotate": {"degrees": 20},
    "hue": {"degrees": 75},
    "opacity": {"opacity": 0.7},
    "flip": {"axis": "horizontal"},
    "tint": {"colour": "#4080ff", "amount": 0.3},
    "gradient_map": {"stops": [{"at": 0, "colour": "#101040"}, {"at": 1, "colour": "#ffe0a0"}]},
    "crop": {"left": 20, "top": 20, "width": 960, "height": 980},
    "replace": {"picture": "picture.png", "fit": "cover"},
    "reorder": {"to": 3},
    "duplicate": {"dx": 30},
    "delete": {},
    "extend_canvas": {"right": 16},
    "crop_canvas": {"left": 8, "top": 0, "width": 1000, "height": 1000},
}
"""The kinds of operations and what they are asked for."""


def image() -> LayeredImage:
    """An opaque ground and soft blobs that fade out towards the sides of the canvas, over noise."""
    rng = np.random.default_rng(0)
    layers = rng.integers(0, 256, (LAYERS, SIDE, SIDE, 4), np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) * 2 - 1
    for number, layer in enumerate(layers):
        layer[..., 3] = 255 if number == 0 else np.rint(255 * np.clip(1.3 - np.hypot(x, y), 0.005, 1))
    return LayeredImage(layers=layers, names=tuple(f"Layer {i}" for i in range(1, LAYERS + 1)))


def items() -> Iterator[dict]:
    """Operations of these kinds in turn; those on layers go through the layers."""
    copies = itertools.count(LAYERS + 1)
    for number, (op, fields) in enumerate(itertools.cycle(KINDS.items())):
        layer = {} if op.endswith("_canvas") else {"layer": next(copies) if op == "delete" else number % LAYERS + 1}
        yield {"op": op, **layer, **fields}


def timed(stack: Stack, operations: Operations) -> list[float]:
    """Seconds of each operation."""
    seconds, before = [], time.perf_counter()
    for _ in script.states(stack, operations):
        after = time.perf_counter()
        seconds.append(after - before)
        before = after
    return seconds


def measure(arguments: argparse.Namespace) -> int:
    """The benchmark `edit`; returns 0."""
    layered = image()
    stack = Stack.of(layered)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.fromarray(layered.layers[0, :, :800]).save(folder / "picture.png")
        text = json.dumps(list(itertools.islice(items(), OPERATIONS)))
        operations = script.parse(text, stack, folder=folder)
        checks = [harness.duration(lambda: script.parse(text, stack, folder=folder)) for _ in range(arguments.repeats)]
        began = time.process_time()
        replays = [timed(stack, operations) for _ in range(arguments.repeats)]
        processor = (time.process_time() - began) / arguments.repeats
        edited = script.replay(stack, operations)
    writing = harness.duration(lambda: edited.to_layered_image(layered))
    totals = [sum(replay) for replay in replays]
    by_kind = {
        kind: harness.median([1e3 * replay[i] for replay in replays for i, o in enumerate(operations) if o.op == kind])
        for kind in KINDS
    }
    rows = [
        ("replay", f"{harness.median(totals):.2f} s ({min(totals):.2f} to {max(totals):.2f})"),
        ("processor time of a replay", f"{processor:.2f} s"),
        ("check of the script, with its pictures", f"{harness.median(checks):.2f} s"),
        ("layers on their canvases, opacity included", f"{writing:.2f} s"),
        *((kind, f"{value:.1f} ms") for kind, value in sorted(by_kind.items(), key=lambda row: -row[1])),
    ]
    head = (f"{OPERATIONS} operations on {LAYERS} layers of {SIDE} x {SIDE}", "median")
    harness.report(head, rows, write=arguments.write, mark="bench edit", note=harness.machine(np, PIL))
    return 0
