"""Random stacks and scripts for the tests of editing."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from layer_stacks import SIZE, stacks

from qil_jax.editing.geometry import Anchor, Axis, Fit
from qil_jax.editing.layer_operations import (
    Crop,
    Flip,
    GradientMap,
    Hue,
    Move,
    Opacity,
    Replace,
    Resize,
    Rotate,
    Stop,
    Tint,
)
from qil_jax.editing.operation import Operation
from qil_jax.editing.stack import Layer, Stack
from qil_jax.editing.stack_operations import CropCanvas, Delete, Duplicate, ExtendCanvas, Reorder
from qil_jax.layers.layered_image import LayeredImage

PICTURE = str(Path(__file__).resolve().parents[2] / "examples" / "scene" / "001.png")
COLOURS = st.sampled_from(["#000000", "#FFffFF", "#12a0f3", "#ff0000"])


def layer(pixels: np.ndarray, left: int = 0, top: int = 0) -> Layer:
    return Layer(pixels=pixels, left=left, top=top, name="x", number=1)


def disc(side: int, radius: float, colour: tuple[int, int, int], hidden: int = 0, soft: float = 1) -> np.ndarray:
    """A disc of one colour whose edge is `soft` pixels wide; `hidden` is the colour under alpha 0."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    pixels = np.full((side, side, 4), hidden, np.uint8)
    pixels[..., 3] = np.rint(255 * np.clip((radius - np.hypot(x, y)) / soft + 0.5, 0, 1))
    pixels[pixels[..., 3] > 0, :3] = colour
    return pixels


@st.composite
def canvases(draw, most: int = 4) -> np.ndarray:
    """Layers on one canvas, with colour under alpha 0, and with a layer of which nothing shows."""
    found = []
    for boxed in draw(stacks(most)):
        canvas = np.zeros((SIZE[1], SIZE[0], 4), np.uint8)
        canvas[boxed.window] = boxed.pixels
        found.append(canvas)
    if draw(st.booleans()):
        found.append(np.zeros_like(found[0]))
    return np.stack(found)


def layered(layers: np.ndarray) -> LayeredImage:
    return LayeredImage(layers=layers, names=tuple(f"layer {i}" for i in range(len(layers))))


DISTANCE, SHARE, ANGLE, SIDE = st.integers(-9, 9), st.floats(0, 1), st.floats(-360, 360), st.integers(1, 20)
STOPS = st.lists(st.tuples(SHARE, COLOURS), min_size=2, max_size=5, unique_by=lambda stop: stop[0])
ON_LAYERS = {
    "move": lambda draw: Move(layer=1, dx=draw(DISTANCE), dy=draw(DISTANCE)),
    "scale": lambda draw: Resize(layer=1, scale=draw(st.floats(0.2, 3)), anchor=draw(st.sampled_from(Anchor))),
    "resize": lambda draw: Resize(layer=1, width=draw(SIDE), height=draw(st.none() | SIDE)),
    "rotate": lambda draw: Rotate(layer=1, degrees=draw(ANGLE | st.sampled_from([90.0, -90.0, 180.0, 360.0]))),
    "flip": lambda draw: Flip(layer=1, axis=draw(st.sampled_from(Axis))),
    "hue": lambda draw: Hue(layer=1, degrees=draw(ANGLE)),
    "tint": lambda draw: Tint(layer=1, colour=draw(COLOURS), amount=draw(SHARE)),
    "gradient_map": lambda draw: GradientMap(
        layer=1, stops=tuple(Stop(at=at, colour=colour) for at, colour in sorted(draw(STOPS)))
    ),
    "opacity": lambda draw: Opacity(layer=1, opacity=draw(SHARE)),
    "crop": lambda draw: Crop(layer=1, left=draw(DISTANCE), top=draw(DISTANCE), width=draw(SIDE), height=draw(SIDE)),
    "replace": lambda draw: Replace(layer=1, picture=PICTURE, fit=draw(st.sampled_from(Fit))),
    "duplicate": lambda draw: Duplicate(
        layer=1, dx=draw(DISTANCE), name=draw(st.sampled_from([None, "new", "layer 0"]))
    ),
    "delete": lambda draw: Delete(layer=1),
}
ON_CANVAS = ("crop_canvas", "extend_canvas")


def draw_operation(draw: Callable, stack: Stack, *, canvas: bool = True) -> Operation:
    """An operation that can be carried out on a stack, of any kind; with `canvas` also of those on the canvas.

    No strategy, since the checks of types at run time use random numbers, which Hypothesis must not see.
    """
    kind = draw(st.sampled_from([*ON_LAYERS, "reorder", "above", *(ON_CANVAS if canvas else ())]))
    one, other = draw(st.permutations(stack.layers))[:2] if len(stack.layers) > 1 else (stack.layers[0], None)
    if kind == "extend_canvas":
        return ExtendCanvas(left=draw(st.integers(0, 5)), bottom=draw(st.integers(0, 5)))
    if kind == "crop_canvas":
        width, height = (draw(st.integers(1, side)) for side in stack.size)
        left, top = draw(st.integers(0, stack.size[0] - width)), draw(st.integers(0, stack.size[1] - height))
        return CropCanvas(left=left, top=top, width=width, height=height)
    if kind == "reorder" or other is None:
        made = Reorder(layer=1, to=draw(st.integers(1, len(stack.layers))))
    else:
        made = Reorder(layer=99, above=other.number) if kind == "above" else ON_LAYERS[kind](draw)
    named = [x.name for x in stack.layers].count(one.name) == 1 and draw(st.booleans())
    return dataclasses.replace(made, layer=one.name if named else one.number)


def draw_script(draw: Callable, stack: Stack, most: int = 8) -> tuple[Operation, ...]:
    """Operations that can be carried out one after the other."""
    found = []
    for _ in range(draw(st.integers(0, most))):
        found.append(draw_operation(draw, stack))
        stack = found[-1].outlined(stack)
    return tuple(found)


def content(stack: Stack) -> tuple:
    """All that a state consists of, for comparison."""
    layers = [(x.number, x.name, x.opacity, x.box, x.pixels.tobytes()) for x in stack.layers]
    return layers, stack.size, stack.next_number


def same_written(a: LayeredImage, b: LayeredImage) -> bool:
    return a.names == b.names and np.array_equal(a.layers, b.layers)
