"""How a line of text is drawn: the letters' shape and colour, their outline, and the shadow that they cast."""

import dataclasses
import itertools
import math

import numpy as np
from jaxtyping import Bool, Float, UInt8

Colour = tuple[int, int, int]
SOLID = 0.63
"""Share of the largest alpha from which a pixel is of a letter or its outline, and not of a shadow or a soft edge."""
SAME = 64
"""Difference of colours, of 255, below which a solid pixel is of a letter, and not of its outline."""
LEAST = 0.15
"""Pixels of an outline or a shadow, as a share of the letters' and outline's, below which there is none."""
EDGE = 2.0
"""Distance in pixels from solid ones up to which soft pixels are an edge, and no shadow."""
FAR, BLURS = 0.4, (0.03, 0.06, 0.12, 0.2)
"""How far shadows are looked for, and how soft, as shares of the line's height."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shadow:
    """A soft shadow: colour, alpha in [0, 1], offset to the right and down, and standard deviation, in pixels."""

    colour: Colour
    opacity: float
    right: int
    down: int
    blur: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Letters:
    """A line of letters.

    Attributes:
      shape: their pixels, without outline and shadow.
      coverage: how much of each pixel they cover, in [0, 1].
      colour: their colour.
      opacity: their alpha in [0, 1].
      outline: straight RGBA of the line around them, clear elsewhere; None if there is none.
      shadow: the shadow that they cast; None if there is none.
    """

    shape: Bool[np.ndarray, "y x"]
    coverage: Float[np.ndarray, "y x"]
    colour: Colour
    opacity: float
    outline: UInt8[np.ndarray, "y x 4"] | None
    shadow: Shadow | None


def letters_of(pixels: UInt8[np.ndarray, "y x 4"]) -> Letters:
    """The letters in pixels that hold a line of text and nothing else; some pixel must be visible."""
    import cv2

    solid = solid_pixels(pixels)
    depth = cv2.distanceTransform(solid.astype(np.uint8), cv2.DIST_L2, 3)
    # The letters' colour is the commonest, each pixel counting by how deep inside it lies.
    coarse = (pixels[..., :3] // 32).astype(np.int64) @ [64, 8, 1]
    commonest = np.bincount(coarse[solid], weights=depth[solid]).argmax()
    colour, opacity = _median(pixels[solid & (coarse == commonest)])
    apart = np.abs(pixels[..., :3].astype(int) - colour).max(axis=-1)
    shape = solid & (apart < SAME)
    near = cv2.dilate(shape.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    coverage = np.where(near & (apart < 2 * SAME), np.minimum(1, pixels[..., 3] / (255 * opacity)), 0)
    outline, shadow = _outline(pixels, solid, shape), _shadow(pixels, solid)
    return Letters(shape=shape, coverage=coverage, colour=colour, opacity=opacity, outline=outline, shadow=shadow)


def solid_pixels(pixels: UInt8[np.ndarray, "y x 4"]) -> Bool[np.ndarray, "y x"]:
    """Whether each pixel is of a letter or its outline."""
    return pixels[..., 3] >= max(1, SOLID * pixels[..., 3].max(initial=1))


def _median(pixels: UInt8[np.ndarray, "n 4"]) -> tuple[Colour, float]:
    red, green, blue, alpha = (int(x) for x in np.median(pixels, axis=0))
    return (red, green, blue), alpha / 255


def _outline(pixels: np.ndarray, solid: np.ndarray, shape: np.ndarray) -> UInt8[np.ndarray, "y x 4"] | None:
    around = solid & ~shape
    return np.where(around[..., None], pixels, 0) if around.sum() >= LEAST * solid.sum() else None


def _shadow(pixels: np.ndarray, solid: np.ndarray) -> Shadow | None:
    """The shadow whose alpha, a blurred and moved copy of the solid pixels, is nearest to that of the soft ones."""
    import cv2

    alpha: Float[np.ndarray, "y x"] = pixels[..., 3].astype(np.float32) / 255
    soft = cv2.distanceTransform((~solid).astype(np.uint8), cv2.DIST_L2, 3) > EDGE
    if (soft & (alpha > 0.05)).sum() < LEAST * solid.sum():
        return None
    height, reach = len(alpha), max(2, round(FAR * len(alpha)))
    step = max(1, reach // 8)
    best = (math.inf, 0.0, 0, 0, 0.0)
    for share in BLURS:
        cast = cv2.GaussianBlur(solid.astype(np.float32), (0, 0), max(0.5, share * height))
        for right, down in itertools.product(range(-reach, reach + 1, step), repeat=2):
            moved = np.roll(cast, (down, right), axis=(0, 1))[soft]
            factor = float((moved * alpha[soft]).sum() / max(1e-6, (moved * moved).sum()))
            error = float(np.square(alpha[soft] - factor * moved).sum())
            best = min(best, (error, min(factor, 1.0), right, down, max(0.5, share * height)))
    _, opacity, right, down, blur = best
    colour, _ = _median(pixels[soft & (alpha > 0.05)])
    return Shadow(colour=colour, opacity=opacity, right=right, down=down, blur=blur)
