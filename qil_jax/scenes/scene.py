"""Layered designs made from a seed: for tests, and to train the demonstration model on.

A scene is a background, then one to six things on it: objects (pictures brought by packages, or drawn shapes), panes of
glass and text, some with a soft shadow in their own layer. What is hidden too much is left out, so every layer counts.
The caption is known from the construction.
"""

import dataclasses
import string
from collections.abc import Callable, Sequence
from enum import StrEnum

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from qil_jax.errors import QilError
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.grouping import front_to_back_groups, merge
from qil_jax.layers.visibility import contributing, trimmed, visible_pixels
from qil_jax.records.record import Record
from qil_jax.scenes.assets import Asset, Assets, Font

COLOURS = {
    "red": (214, 40, 57), "orange": (247, 127, 0), "yellow": (252, 203, 52), "green": (56, 142, 60),
    "teal": (0, 137, 123), "blue": (33, 101, 192), "violet": (106, 61, 154), "pink": (236, 120, 170),
    "brown": (121, 85, 61), "grey": (120, 124, 130), "black": (24, 24, 28), "white": (248, 248, 245),
}  # fmt: skip
WORDS = ("SALE", "NEW", "Hello", "Summer", "Music", "OPEN", "Coffee", "Sunday", "Free", "Travel", "50%", "No. 7")
GROUNDS = ("gradient", "glow", "stripes", "checks", "plain")
MOST_THINGS = 6


class Depth(StrEnum):
    """What makes a layer."""

    THING = "thing"  # each thing is one
    GROUP = "group"  # things at one depth that never overlap are one, as build_dataset merges them


class Order(StrEnum):
    """Who lies in front of whom."""

    DRAWN = "drawn"  # later things before earlier ones
    LOWER_EDGE = "lower_edge"  # what ends lower on the canvas lies in front: a picture tells it, overlap or not


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """How scenes are.

    Attributes:
      side: of the square canvas in pixels.
      most: things on the background at most.
      shadow, glass, text: shares of things that have a shadow, or are panes of glass, or text.
      drawn: share of objects that are drawn shapes where assets could give pictures.
      pictured: share of backgrounds that are pictures where assets could give them.
      grounds: kinds of drawn backgrounds.
      visible: share of itself that a thing must show, and `share` of the canvas that it must cover.
    """

    side: int = 128
    most: int = MOST_THINGS
    shadow: float = 0.35
    glass: float = 0.15
    text: float = 0.25
    drawn: float = 0.0
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
"""What the demonstration model is trained on: few large opaque objects before smooth backgrounds, each a layer of its
own, in an order that the picture tells: of things that never touch no model can learn who was drawn first."""
GROUPED = dataclasses.replace(SIMPLE, depth=Depth.GROUP, order=Order.DRAWN)
"""The same things as build_dataset merges them. The demonstration model's first runs had these."""
ORDERINGS, APART = 50, 10**9
"""Seeds that are tried for a scene whose things still show enough in the wanted order, and how far they are apart."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Thing:
    image: Image.Image
    phrase: str
    assets: tuple[Asset | Font, ...] = ()
    outside: float = 0.25


def make_scene(seed: int, config: SceneConfig, assets: Assets | None = None) -> Record:
    """The scene of a seed: the same bytes for the same seed, config, assets and version of Pillow.

    Returns:
      Two to seven layers, the background at the bottom, with caption, licences of the assets as `licence` and
      packages as `source`. Colour under alpha 0 is 0.
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
    """The scene of a seed, in the order in which it was drawn."""
    rng = np.random.default_rng([seed, config.side])
    assets = assets or Assets()
    ground = _background(rng, config, assets)
    kept, layers = [ground], [_placed(ground.image, 0, 0, config.side, ground.phrase)]
    count = int(rng.integers(1, config.most + 1))
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
    """Where a thing begins along one axis: up to the share `outside` of it may leave the canvas."""
    out = int(length * outside)
    return int(rng.integers(min(0, side - length) if out == 0 else -out, max(1, side - length + out + 1)))


def _all_count(layers: Sequence[BoxedLayer], config: SceneConfig) -> bool:
    """Whether each thing still shows enough of itself and of the canvas, and differs from what it covers."""
    size = config.side, config.side
    shown = visible_pixels(layers, size)
    own = np.array([layer.pixels[..., 3].sum(dtype=np.float64) / 255 for layer in layers])
    enough = (shown[1:] > config.visible * own[1:]) & (shown[1:] > config.share * config.side**2)
    if not enough.all() or shown[0] < 0.1 * config.side**2:
        return False
    return len(contributing(layers, size)[0]) == len(layers)


def _caption(things: Sequence[_Thing]) -> str:
    named = [thing.phrase for thing in things[1:]]
    listed = named[0] if len(named) == 1 else ", ".join(named[:-1]) + f" and {named[-1]}"
    return f"{listed[0].upper()}{listed[1:]} on {things[0].phrase}."


def _placed(image: Image.Image, left: int, top: int, side: int, name: str) -> BoxedLayer:
    """A picture at a place, cut to the canvas and to what shows."""
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(image, (left, top))
    pixels = np.array(canvas)
    pixels[pixels[..., 3] == 0] = 0
    if not pixels[..., 3].any():
        pixels[0, 0, 3] = 1  # off the canvas: too little to be kept
    return trimmed(BoxedLayer(pixels=pixels, left=0, top=0, name=name))


def _background(rng: np.random.Generator, config: SceneConfig, assets: Assets) -> _Thing:
    side = config.side
    if assets.backgrounds and rng.random() < config.pictured:
        asset = assets.backgrounds[int(rng.integers(len(assets.backgrounds)))]
        image = Image.fromarray(asset.pixels).convert("RGB")
        crop = int(rng.uniform(0.6, 1) * min(image.size))
        left, top = (int(rng.integers(0, s - crop + 1)) for s in image.size)
        part = image.resize((side, side), Image.Resampling.LANCZOS, (left, top, left + crop, top + crop))
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part
        return _Thing(image=part.convert("RGBA"), phrase=asset.name, assets=(asset,))
    first, second = rng.choice(list(COLOURS), 2, replace=False)
    kind = str(rng.choice(list(config.grounds)))
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    angle, waves = rng.uniform(0, np.pi), rng.integers(2, 7)
    along = x * np.cos(angle) + y * np.sin(angle)
    mix = {
        "gradient": (along + 1.42) / 2.84,
        "glow": np.clip(np.hypot(x, y) / 1.42, 0, 1),
        "stripes": (np.sin(along * np.pi * waves) > 0).astype(float),
        "checks": (np.sin(x * np.pi * waves) * np.sin(y * np.pi * waves) > 0).astype(float),
        "plain": np.zeros_like(x),
    }[kind]
    phrase = {
        "gradient": f"a background fading from {first} to {second}",
        "glow": f"{_article(first)} glow on {second}",
        "stripes": f"{first} and {second} stripes",
        "checks": f"{first} and {second} checks",
        "plain": f"a plain {first} background",
    }[kind]
    return _Thing(image=_mixed(mix, COLOURS[first], COLOURS[second]), phrase=phrase)


def _mixed(mix: Float[np.ndarray, "y x"], first: Sequence[int], second: Sequence[int]) -> Image.Image:
    colour = np.asarray(first) + np.clip(mix, 0, 1)[..., None] * (np.asarray(second) - np.asarray(first))
    opaque = np.full((*mix.shape, 1), 255)
    return Image.fromarray(np.rint(np.concatenate([colour, opaque], -1)).astype(np.uint8))


def _thing(rng: np.random.Generator, config: SceneConfig, assets: Assets) -> _Thing:
    kind = rng.random()
    if kind < config.text:
        thing = _text(rng, config.side, assets)
    elif kind < config.text + config.glass:
        return _glass(rng, config.side)
    else:
        pictured = len(assets.objects) and not (config.drawn and rng.random() < config.drawn)
        thing = _picture(rng, config.side, assets) if pictured else _shape(rng, config.side)
    if rng.random() < config.shadow:
        thing = dataclasses.replace(thing, image=_with_shadow(thing.image, rng, config.side))
    return thing


def _picture(rng: np.random.Generator, side: int, assets: Assets) -> _Thing:
    asset = assets.objects[int(rng.integers(len(assets.objects)))]
    image = Image.fromarray(asset.pixels)
    scale = rng.uniform(0.3, 0.8) * side / max(image.size)
    image = _premultiplied(image, lambda x: x.resize([max(4, round(s * scale)) for s in image.size], 1))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.3:
        angle = rng.uniform(-25, 25)
        image = _premultiplied(image, lambda x: x.rotate(angle, Image.Resampling.BICUBIC, expand=True))
    return _Thing(image=image, phrase=asset.name, assets=(asset,))


def _premultiplied(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Filter without fringes: the colour of clear pixels must not bleed."""
    return change(image.convert("RGBa")).convert("RGBA")


def _shape(rng: np.random.Generator, side: int) -> _Thing:
    """A shaded disc, ring, polygon or star, drawn four times larger and made small."""
    name, other = rng.choice(list(COLOURS), 2, replace=False)
    kind = str(rng.choice(["disc", "ring", "square", "triangle", "hexagon", "star"]))
    large = 4 * int(rng.uniform(0.2, 0.6) * side)
    mask = Image.new("L", (large, large))
    draw = ImageDraw.Draw(mask)
    turn = rng.uniform(0, 2 * np.pi)
    if kind in ("disc", "ring"):
        draw.ellipse((2, 2, large - 3, large - 3), fill=255)
        if kind == "ring":
            hole = large // 4
            draw.ellipse((hole, hole, large - hole, large - hole), fill=0)
    else:
        corners = {"square": 4, "triangle": 3, "hexagon": 6, "star": 10}[kind]
        reach = [large / 2 * (0.45 if kind == "star" and i % 2 else 0.99) for i in range(corners)]
        angles = [turn + 2 * np.pi * i / corners for i in range(corners)]
        middle = large / 2
        draw.polygon(
            [(middle + r * np.cos(a), middle + r * np.sin(a)) for r, a in zip(reach, angles, strict=True)], fill=255
        )
    small = mask.resize((large // 4, large // 4), Image.Resampling.BOX)
    y, x = np.mgrid[0 : 1 : small.height * 1j, 0 : 1 : small.width * 1j]
    image = _mixed(0.35 * (x + y) / 2, COLOURS[name], COLOURS[other])
    image.putalpha(small)
    return _Thing(image=image, phrase=f"{_article(name)} {kind}")


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _glass(rng: np.random.Generator, side: int) -> _Thing:
    """A rounded pane that lets light through."""
    name = str(rng.choice(list(COLOURS)))
    width, height = (int(rng.uniform(0.25, 0.7) * side) for _ in range(2))
    mask = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(mask).rounded_rectangle(
        (0, 0, 4 * width - 1, 4 * height - 1), float(rng.uniform(4, side / 2)), fill=255
    )
    alpha = np.asarray(mask.resize((width, height), Image.Resampling.BOX)) * rng.uniform(0.3, 0.75)
    image = Image.new("RGBA", (width, height), COLOURS[name])
    image.putalpha(Image.fromarray(np.rint(alpha).astype(np.uint8)))
    return _Thing(image=image, phrase=f"a pane of {name} glass")


def _text(rng: np.random.Generator, side: int, assets: Assets) -> _Thing:
    word = str(rng.choice(WORDS)) if rng.random() < 0.7 else "".join(rng.choice(list(string.ascii_uppercase), 3))
    name, rim = rng.choice(list(COLOURS), 2, replace=False)
    size = float(rng.uniform(0.14, 0.3) * side)
    chosen = [assets.fonts[int(rng.integers(len(assets.fonts)))]] if assets.fonts else []
    font = ImageFont.truetype(chosen[0].file, size) if chosen else ImageFont.load_default(size)
    stroke = int(rng.integers(0, 2)) * max(1, side // 100)
    left, top, right, bottom = font.getbbox(word, stroke_width=stroke)
    image = Image.new("RGBA", (int(right - left) + 4, int(bottom - top) + 4), (*COLOURS[rim if stroke else name], 0))
    where = (2 - left, 2 - top)
    ImageDraw.Draw(image).text(where, word, COLOURS[name], font, stroke_width=stroke, stroke_fill=COLOURS[rim])
    phrase = f"the text '{word}' in {name}"
    return _Thing(image=image, phrase=phrase, assets=tuple(chosen), outside=0.0)  # every letter is to be read


def _with_shadow(image: Image.Image, rng: np.random.Generator, side: int) -> Image.Image:
    """The thing on its own soft shadow, one layer."""
    blur, away = max(1, side // 40), max(1, side // 30)
    pad = 3 * blur + away
    whole = Image.new("RGBA", (image.width + 2 * pad, image.height + 2 * pad))
    shade = Image.new("L", whole.size)
    shade.paste(image.getchannel("A"), (pad + away, pad + away))
    shade = shade.filter(ImageFilter.GaussianBlur(blur)).point(lambda v: int(v * 0.55))
    whole.putalpha(shade)
    whole.alpha_composite(image, (pad, pad))
    return whole
