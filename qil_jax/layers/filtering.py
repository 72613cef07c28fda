"""Resampling of straight RGBA pixels: colour is filtered premultiplied, in fp32, and rounded once.

So colours under alpha 0 never bleed into an edge, and a layer of one colour keeps exactly that colour. No filter here
has negative lobes: others leave a haze around every shape.
"""

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from qil_jax.layers.boxed_layer import Box

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels, possibly fractional."""


def resampled(
    pixels: UInt8[np.ndarray, "y x 4"], size: tuple[int, int], part: Rectangle | None = None
) -> UInt8[np.ndarray, "Y X 4"]:
    """A part of the pixels, by default all, at another size (width, height). What is beyond the pixels does not count.

    The filter is Hamming's where neither side grows, else bilinear.
    """
    part = part or (0.0, 0.0, float(pixels.shape[1]), float(pixels.shape[0]))
    grows = size[0] > part[2] - part[0] or size[1] > part[3] - part[1]
    kernel = Image.Resampling.BILINEAR if grows else Image.Resampling.HAMMING
    return _straight([plane.resize(size, kernel, part) for plane in _premultiplied(pixels)])


def resize_layers(layers: UInt8[np.ndarray, "l y x 4"], size: tuple[int, int]) -> UInt8[np.ndarray, "l Y X 4"]:
    """Layers resized to (width, height) by LANCZOS on premultiplied colour, so that hidden colours do not bleed."""
    if layers.shape[2:0:-1] == size:
        return layers
    return np.stack([np.asarray(Image.fromarray(x, "RGBA").resize(size, Image.Resampling.LANCZOS)) for x in layers])


def rotated(
    pixels: UInt8[np.ndarray, "y x 4"], degrees: float, about: tuple[float, float]
) -> tuple[UInt8[np.ndarray, "Y X 4"], Box]:
    """Pixels on a transparent plane, rotated clockwise, bilinearly; and the box in which they lie then.

    Args:
      pixels: straight RGBA.
      degrees: the angle.
      about: x and y of the centre, in the pixels' coordinates; the box has the same ones.
    """
    height, width = pixels.shape[:2]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x - about[0], y - about[1]) for x in (0, width) for y in (0, height)]
    xs, ys = ([about[0] + cos * x - sin * y for x, y in corners], [about[1] + sin * x + cos * y for x, y in corners])
    box = math.floor(min(xs)) - 1, math.floor(min(ys)) - 1, math.ceil(max(xs)) + 1, math.ceil(max(ys)) + 1
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)))  # Pillow does not blend the outermost pixels with what is beyond
    x, y = box[0] - about[0], box[1] - about[1]
    back = (cos, sin, cos * x + sin * y + about[0] + 2, -sin, cos, cos * y - sin * x + about[1] + 2)
    size = box[2] - box[0], box[3] - box[1]
    planes = [
        plane.transform(size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
        for plane in _premultiplied(padded)
    ]
    return _straight(planes), box


def _premultiplied(pixels: UInt8[np.ndarray, "y x 4"]) -> list[Image.Image]:
    """Red, green, blue times alpha, and alpha, in [0, 255], as fp32 pictures."""
    alpha = pixels[..., 3].astype(np.float32)
    share = alpha / 255
    return [Image.fromarray(plane) for plane in (*(pixels[..., c] * share for c in range(3)), alpha)]


def _straight(planes: list[Image.Image]) -> UInt8[np.ndarray, "y x 4"]:
    """The inverse of `_premultiplied`, rounded; 0 where alpha is."""
    *colours, alpha = (np.asarray(plane) for plane in planes)
    pixels = np.empty((*alpha.shape, 4), np.uint8)
    pixels[..., 3] = np.rint(alpha)
    shows = pixels[..., 3] > 0
    scale = np.divide(255, alpha, out=np.zeros_like(alpha), where=shows)
    for c, colour in enumerate(colours):
        pixels[..., c] = np.rint(np.minimum(colour * scale, 255))
    return pixels
