"""Synthetic layered designs from a seed, for tests and for training the demonstration model.

A scene is a background and one to six things on it: objects (pictures from packages, or drawn shapes), panes of glass
and text, some with a soft shadow in their own layer. Things that others hide too much are left out, so every layer
contributes. The caption follows from the construction.
"""

import dataclasses
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from PIL import Image

from qil_jax.errors import QilError
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.grouping import front_to_back_groups, merge
from qil_jax.layers.visibility import contributing, trimmed, visible_pixels
from qil_jax.records.record import Record
from qil_jax.scenes.assets import Assets
from qil_jax.scenes.shapes import (
    GROUNDS,
    Thing,
    draw_background,
    draw_glass,
    draw_picture,
    draw_shape,
    draw_text,
    vary,
    with_shadow,
)

MOST_THINGS = 6
"""Maximum number of things on a background."""


class Depth(StrEnum):
    """Assignment of the things of a scene to layers."""

    THING = "thing"  # one thing
    GROUP = "group"  # all things at one depth that never overlap, as build_dataset merges them


class Order(StrEnum):
    """The order of things in depth."""

    DRAWN = "drawn"  # things drawn later are in front
    LOWER_EDGE = "lower_edge"  # things whose lower edge is lower are in front: visible even without overlap


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """The distribution of scenes.

    Attributes:
      side: side length of the square canvas in pixels.
      most: maximum number of things on the background, 1 to 6.
      few: probability, in [0, 1], that the maximum is 2 instead.
      shadow: probability, in [0, 1], that an object or text has a shadow.
      glass: probability, in [0, 1], that a thing is a pane of glass.
      text: probability, in [0, 1], that a thing is text.
      drawn: probability, in [0, 1], that an object is a drawn shape although there are pictures.
      varied: probability, in [0, 1], that a picture is narrowed, and that its colour channels are exchanged.
      pictured: probability, in [0, 1], that a background is a picture if there are any.
      grounds: kinds of drawn backgrounds to choose from.
      depth: assignment of the things to layers.
      order: order of the things in depth.
      visible: minimum share, in [0, 1], of a thing's area that is visible.
      share: minimum share, in [0, 1], of the canvas that a thing visibly covers.
    """

    side: int = 128
    most: int = MOST_THINGS
    few: float = 0.0
    shadow: float = 0.35
    glass: float = 0.15
    text: float = 0.25
    drawn: float = 0.0
    varied: float = 0.0
    pictured: float = 0.8
    grounds: tuple[str, ...] = GROUNDS
    depth: Depth = Depth.THING
    order: Order = Order.DRAWN
    visible: float = 0.3
    share: float = 0.01


SIMPLE = SceneConfig(
    side=64,
    most=4,
    shadow=0.0,
    glass=0.0,
    text=0.0,
    drawn=0.5,
    pictured=0.0,
    grounds=("gradient", "glow", "plain"),
    order=Order.LOWER_EDGE,
    visible=0.4,
    share=0.03,
)
"""The training data of the demonstration model: few large opaque objects on smooth backgrounds, one layer each, in
the order of their lower edges: the order in which things that never touch were drawn cannot be learnt."""
GROUPED = dataclasses.replace(SIMPLE, depth=Depth.GROUP, order=Order.DRAWN)
"""SIMPLE with things merged by depth as in build_dataset; the first runs of the demonstration model use it."""
VARIED = dataclasses.replace(SIMPLE, varied=0.6)
"""SIMPLE with the same pictures in many forms; the last run of the demonstration model uses it."""
DESIGN = SceneConfig(
    most=4,
    few=0.4,
    shadow=0.25,
    glass=0.0,
    text=0.12,
    drawn=0.2,
    varied=0.4,
    pictured=0.25,
    order=Order.LOWER_EDGE,
    visible=0.35,
    share=0.02,
)
"""Designs for the demonstration model at 128 pixels: one or two things in 70 % of the scenes, as order is hard to learn
among more, and photographs for a quarter of the grounds."""
PHOTO = dataclasses.replace(DESIGN, most=3, shadow=0.2, text=0.08, pictured=0.75, share=0.025)
"""Fewer things, on photographs for three quarters of the grounds."""
ORDERINGS, APART = 50, 10**9
"""Number of seeds tried for a scene whose things are visible enough in the wanted order, and their distance."""


def make_scene(seed: int, config: SceneConfig, assets: Assets | None = None) -> Record:
    """The scene of a seed: the same bytes for the same seed, config, assets and version of Pillow.

    Returns:
      Two to seven layers, the background at the bottom, with caption, licences of the assets as `licence` and
      packages as `source`. Colour under alpha 0 is 0.

    Raises:
      QilError: if things hide each other too much in every attempt.
    """
    if config.order is Order.DRAWN:
        return _drawn(seed, config, assets)
    for attempt in range(ORDERINGS):
        scene = _drawn(seed + attempt * APART, config, assets)
        ground, *things = scene.layers
        layers = (ground, *sorted(things, key=lambda thing: (thing.box[3], thing.box[0])))
        if _all_count(layers, config):
            return dataclasses.replace(scene, layers=layers)
    raise QilError(f"no scene for seed {seed}: in {ORDERINGS} tries something was always hidden too much")


def _drawn(seed: int, config: SceneConfig, assets: Assets | None) -> Record:
    """The scene of a seed, its things in the order in which they were drawn."""
    rng = np.random.default_rng([seed, config.side])
    assets = assets or Assets()
    ground = draw_background(rng, config.side, assets, pictured=config.pictured, grounds=config.grounds)
    kept, layers = [ground], [_placed(ground.image, 0, 0, config.side, ground.phrase)]
    most = 2 if config.few and rng.random() < config.few else config.most
    count = int(rng.integers(1, most + 1))
    tries = 0
    while len(kept) == 1 or (len(kept) <= count and tries < 4 * count):
        tries += 1
        thing = _thing(rng, config, assets)
        left, top = (_place(rng, length, config.side, thing.outside) for length in thing.image.size)
        candidate = [*layers, _placed(thing.image, left, top, config.side, thing.phrase)]
        if _all_count(candidate, config):
            kept.append(thing)
            layers = candidate
    used = [asset for thing in kept for asset in thing.assets]
    size = config.side, config.side
    if config.depth is Depth.GROUP:
        layers = merge(layers, front_to_back_groups(layers), size)
    return Record(
        layers=tuple(layers),
        size=size,
        caption=_caption(kept),
        source=f"scene {seed}" + "".join(f", {asset.package}: {asset.name}" for asset in used),
        licence=" AND ".join(sorted({asset.licence for asset in used})) or "CC0-1.0",
        category="scene",
    )


def _place(rng: np.random.Generator, length: int, side: int, outside: float) -> int:
    """Position of a thing along one axis: up to the share `outside` of it may lie off the canvas."""
    out = int(length * outside)
    return int(rng.integers(min(0, side - length) if out == 0 else -out, max(1, side - length + out + 1)))


def _all_count(layers: Sequence[BoxedLayer], config: SceneConfig) -> bool:
    """Whether every thing is sufficiently visible, covers enough of the canvas and differs from what it covers."""
    size = config.side, config.side
    shown = visible_pixels(layers, size)
    own = np.array([layer.pixels[..., 3].sum(dtype=np.float64) / 255 for layer in layers])
    enough = (shown[1:] > config.visible * own[1:]) & (shown[1:] > config.share * config.side**2)
    if not enough.all() or shown[0] < 0.1 * config.side**2:
        return False
    return len(contributing(layers, size)[0]) == len(layers)


def _caption(things: Sequence[Thing]) -> str:
    """A sentence that names the things and, last, the background, which is the first of `things`."""
    named = [thing.phrase for thing in things[1:]]
    listed = named[0] if len(named) == 1 else ", ".join(named[:-1]) + f" and {named[-1]}"
    return f"{listed[0].upper()}{listed[1:]} on {things[0].phrase}."


def _placed(image: Image.Image, left: int, top: int, side: int, name: str) -> BoxedLayer:
    """An image at a position, cut to the canvas and to its visible pixels."""
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(image, (left, top))
    pixels = np.array(canvas)
    pixels[pixels[..., 3] == 0] = 0
    if not pixels[..., 3].any():
        pixels[0, 0, 3] = 1  # off the canvas: too little to be kept
    return trimmed(BoxedLayer(pixels=pixels, left=0, top=0, name=name))


def _thing(rng: np.random.Generator, config: SceneConfig, assets: Assets) -> Thing:
    """A random thing: text, a pane of glass or an object, the first and last perhaps with a shadow."""
    kind = rng.random()
    if kind < config.text:
        thing = draw_text(rng, config.side, assets)
    elif kind < config.text + config.glass:
        return draw_glass(rng, config.side)
    else:
        pictured = len(assets.objects) and not (config.drawn and rng.random() < config.drawn)
        thing = draw_picture(rng, config.side, assets) if pictured else draw_shape(rng, config.side)
        if pictured and config.varied:
            thing = dataclasses.replace(thing, image=vary(thing.image, rng, config.varied))
    if rng.random() < config.shadow:
        thing = dataclasses.replace(thing, image=with_shadow(thing.image, rng, config.side))
    return thing
