"""Preprocessing of picture files for the VAE, identical to diffusers' `pipeline_qwenimage_layered.py`."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from qil_jax.choices import MULTIPLE, RESOLUTION
from qil_jax.encoders.pixels import to_float
from qil_jax.layers.pictures import LARGEST_SIDE, ImageError, Picture, read_bytes, read_picture, to_rgba
from qil_jax.layers.resize import sides

SMALLEST_SIDE = 2
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif")


def open_image(path: Path, *, resolution: int = RESOLUTION) -> Image.Image:
    """Read a picture as 8-bit RGBA in sRGB, rotated upright by its EXIF orientation.

    Grey, palette, CMYK and 16-bit pictures are converted; a picture without alpha becomes opaque.

    Raises:
      ImageError: if the file cannot be read or decoded, see `decode_image`.
    """
    return decode_image(read_bytes(path), str(path), resolution=resolution).in_srgb()


def decode_image(data: bytes, name: str, *, resolution: int = RESOLUTION) -> Picture:
    """Decode the bytes of a picture file as `open_image` does, but for its colour profile, which is kept.

    Raises:
      ImageError: if the bytes are no picture, the picture is animated, has a side below 2 or above 16,384 pixels, or
        is too narrow for a bucket of `resolution`.
    """
    return read_picture(data, name, lambda size: check_size(size, name, resolution))


def check_size(size: tuple[int, int], name: str, resolution: int) -> None:
    """Refuse pictures whose size the model does not support.

    Raises:
      ImageError: if a side is out of bounds, or the picture is so narrow that a side of its bucket would be zero.
    """
    width, height = size
    if min(size) < SMALLEST_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels; both sides must have at least {SMALLEST_SIDE}")
    if max(size) > LARGEST_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels; scale it down to at most {LARGEST_SIDE} a side")
    bucket_size(width, height, resolution, name=name)


def bucket_size(width: int, height: int, resolution: int, *, name: str = "picture") -> tuple[int, int]:
    """Width and height of the model's input: resolution^2 pixels at the picture's aspect ratio, rounded to 32.

    Raises:
      ImageError: if the picture is so narrow or flat that a side would round to zero.
    """
    wide, high = sides(width / height, resolution, MULTIPLE)
    if not wide or not high:
        limit = int((2 * resolution / MULTIPLE) ** 2)
        raise ImageError(
            f"{name}: {width}x{height} collapses to {wide}x{high} at resolution {resolution}; "
            f"crop or pad it to an aspect ratio below {limit}:1"
        )
    return wide, high


def preprocess(image: Image.Image, resolution: int) -> tuple[UInt8[np.ndarray, "y x 4"], Float32[np.ndarray, "y x 4"]]:
    """A picture resized for the model, as 8-bit RGBA and as an array in [-1, 1], alpha included.

    Pillow's LANCZOS filter premultiplies RGBA: colours under alpha 0 become black unless the size already fits.
    """
    image = to_rgba(image)
    size = bucket_size(*image.size, resolution)
    resized = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    return resized, to_float(resized)
