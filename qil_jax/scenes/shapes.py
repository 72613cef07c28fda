"""The things that a scene shows and its backgrounds: pictures from packages, drawn shapes, panes of glass and text."""

import dataclasses
import string
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from qil_jax.scenes.assets import Asset, Assets, Font

COLOURS = {
    "red": (214, 40, 57), "orange": (247, 127, 0), "yellow": (252, 203, 52), "green": (56, 142, 60),
    "teal": (0, 137, 123), "blue": (33, 101, 192), "violet": (106, 61, 154), "pink": (236, 120, 170),
    "brown": (121, 85, 61), "grey": (120, 124, 130), "black": (24, 24, 28), "white": (248, 248, 245),
}  # fmt: skip
"""Colour names and their sRGB values."""
WORDS = ("SALE", "NEW", "Hello", "Summer", "Music", "OPEN", "Coffee", "Sunday", "Free", "Travel", "50%", "No. 7")
GROUNDS = ("gradient", "glow", "stripes", "checks", "plain")
"""Kinds of drawn backgrounds."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Thing:
    """An image that a scene is composed of.

    Attributes:
      image: straight RGBA image.
      phrase: noun phrase that names the thing in the caption.
      assets: assets from which the thing was made.
      outside: maximum share of the thing's length, in [0, 1], that lies off the canvas.
    """

    image: Image.Image
    phrase: str
    assets: tuple[Asset | Font, ...] = ()
    outside: float = 0.25


def draw_background(
    rng: np.random.Generator, side: int, assets: Assets, *, pictured: float, grounds: Sequence[str]
) -> Thing:
    """A background: a picture with probability `pictured` if there are any, else a drawn one of a kind in `grounds`."""
    if assets.backgrounds and rng.random() < pictured:
        asset = assets.backgrounds[int(rng.integers(len(assets.backgrounds)))]
        image = Image.fromarray(asset.pixels).convert("RGB")
        crop = int(rng.uniform(0.6, 1) * min(image.size))
        left, top = (int(rng.integers(0, s - crop + 1)) for s in image.size)
        part = image.resize((side, side), Image.Resampling.LANCZOS, (left, top, left + crop, top + crop))
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part
        return Thing(image=part.convert("RGBA"), phrase=asset.name, assets=(asset,))
    first, second = rng.choice(list(COLOURS), 2, replace=False)
    kind = str(rng.choice(list(grounds)))
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
    return Thing(image=_mixed(mix, COLOURS[first], COLOURS[second]), phrase=phrase)


def _mixed(mix: Float[np.ndarray, "y x"], first: Sequence[int], second: Sequence[int]) -> Image.Image:
    """An opaque image that interpolates between two colours; 0 is the first, 1 the second."""
    colour = np.asarray(first) + np.clip(mix, 0, 1)[..., None] * (np.asarray(second) - np.asarray(first))
    opaque = np.full((*mix.shape, 1), 255)
    return Image.fromarray(np.rint(np.concatenate([colour, opaque], -1)).astype(np.uint8))


def draw_picture(rng: np.random.Generator, side: int, assets: Assets) -> Thing:
    """A picture of an object, scaled, flipped and rotated at random."""
    asset = assets.objects[int(rng.integers(len(assets.objects)))]
    image = Image.fromarray(asset.pixels)
    scale = rng.uniform(0.3, 0.8) * side / max(image.size)
    image = _premultiplied(image, lambda x: x.resize([max(4, round(s * scale)) for s in image.size], 1))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.3:
        angle = rng.uniform(-25, 25)
        image = _premultiplied(image, lambda x: x.rotate(angle, Image.Resampling.BICUBIC, expand=True))
    return Thing(image=image, phrase=asset.name, assets=(asset,))


def vary(image: Image.Image, rng: np.random.Generator, probability: float) -> Image.Image:
    """An RGBA picture, with a given probability narrowed to 0.7 or more of a side, and likewise in other colours."""
    if rng.random() < probability:
        *bands, alpha = image.split()
        image = Image.merge("RGBA", [*(bands[i] for i in rng.permutation(3)), alpha])
    if rng.random() < probability:
        side, factor = int(rng.integers(2)), rng.uniform(0.7, 1.0)
        size = [max(4, round(s * factor)) if i == side else s for i, s in enumerate(image.size)]
        image = _premultiplied(image, lambda x: x.resize(size, Image.Resampling.LANCZOS))
    return image


def _premultiplied(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`change` on premultiplied colour, so that the colour of clear pixels does not bleed into edges."""
    return change(image.convert("RGBa")).convert("RGBA")


def draw_shape(rng: np.random.Generator, side: int) -> Thing:
    """A shaded disc, ring, polygon or star, drawn at four times its size and reduced."""
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
    return Thing(image=image, phrase=f"{_article(name)} {kind}")


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def draw_glass(rng: np.random.Generator, side: int) -> Thing:
    """A translucent pane with rounded corners."""
    name = str(rng.choice(list(COLOURS)))
    width, height = (int(rng.uniform(0.25, 0.7) * side) for _ in range(2))
    mask = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(mask).rounded_rectangle(
        (0, 0, 4 * width - 1, 4 * height - 1), float(rng.uniform(4, side / 2)), fill=255
    )
    alpha = np.asarray(mask.resize((width, height), Image.Resampling.BOX)) * rng.uniform(0.3, 0.75)
    image = Image.new("RGBA", (width, height), COLOURS[name])
    image.putalpha(Image.fromarray(np.rint(alpha).astype(np.uint8)))
    return Thing(image=image, phrase=f"a pane of {name} glass")


def draw_text(rng: np.random.Generator, side: int, assets: Assets) -> Thing:
    """A word or three random letters, perhaps outlined."""
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
    return Thing(image=image, phrase=phrase, assets=tuple(chosen), outside=0.0)  # every letter is to be read


def with_shadow(image: Image.Image, rng: np.random.Generator, side: int) -> Image.Image:
    """An image with a soft shadow below it."""
    blur, away = max(1, side // 40), max(1, side // 30)
    pad = 3 * blur + away
    whole = Image.new("RGBA", (image.width + 2 * pad, image.height + 2 * pad))
    shade = Image.new("L", whole.size)
    shade.paste(image.getchannel("A"), (pad + away, pad + away))
    shade = shade.filter(ImageFilter.GaussianBlur(blur)).point(lambda v: int(v * 0.55))
    whole.putalpha(shade)
    whole.alpha_composite(image, (pad, pad))
    return whole
