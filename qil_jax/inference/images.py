"""Picture files to the input of the VAE, prepared exactly as diffusers' `pipeline_qwenimage_layered.py` does."""

import io
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from qil_jax.encoders.pixels import to_float
from qil_jax.errors import QilError
from qil_jax.layers.resize import sides
from qil_jax.limits import MULTIPLE, RESOLUTION

SMALLEST_SIDE = 2
LARGEST_SIDE = 16384
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")


class ImageError(QilError):
    """A picture that cannot be decomposed. The message names the file, the reason and the fix."""


def open_image(path: Path, *, resolution: int = RESOLUTION) -> Image.Image:
    """Read a picture as 8-bit RGBA, upright.

    Gray, palette, CMYK and 16-bit pictures are converted; alpha is kept, and opaque where there is none.

    Raises:
      ImageError: as `decode_image`, or if the file cannot be read.
    """
    return decode_image(read_bytes(path), str(path), resolution=resolution)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
      ImageError: if they cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); see to the file or its permissions") from error


def decode_image(data: bytes, name: str, *, resolution: int = RESOLUTION) -> Image.Image:
    """The picture in the bytes of a file, as `open_image` gives it.

    Raises:
      ImageError: if it is no picture, animated, has a side below 2 or above 16,384 pixels, or is too narrow for a
        bucket of `resolution`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata: what matters is said here
            with Image.open(io.BytesIO(data)) as image:
                pictures = getattr(image, "n_frames", 1)
                if pictures > 1:
                    raise ImageError(f"{name}: animated or multi-page ({pictures} pictures); save one as PNG")
                check_size(image.size, name, resolution)
                image.load()
                return to_rgba(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too many pixels ({error}); scale it down first") from error
    except Exception as error:  # Pillow's decoders raise whatever malformed bytes lead them to
        raise ImageError(f"{name}: cannot be read as a picture ({error}); open and save it again as PNG") from error


def check_size(size: tuple[int, int], name: str, resolution: int) -> None:
    """Refuse sizes that cannot be decomposed.

    Raises:
      ImageError: if a side is out of bounds, or the picture is so narrow that a side of its bucket would be zero.
    """
    width, height = size
    if min(size) < SMALLEST_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels; both sides must have at least {SMALLEST_SIDE}")
    if max(size) > LARGEST_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels; scale it down to at most {LARGEST_SIDE} a side")
    bucket_size(width, height, resolution, name=name)


def to_rgba(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGBA; 16-bit and float gray are scaled, not clipped."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, np.float64)
        top = 1.0 if image.mode == "F" and values.max(initial=0) <= 1 else 255.0 if image.mode == "F" else 65535.0
        image = Image.fromarray(np.round(values.clip(0, top) / top * 255).astype(np.uint8), "L")
    return image.convert("RGBA")


def bucket_size(width: int, height: int, resolution: int, *, name: str = "picture") -> tuple[int, int]:
    """Width and height at which the model sees a picture: resolution^2 pixels at its aspect ratio, rounded to 32.

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
    """A picture at the model's size: as 8-bit RGBA, and in [-1, 1] with alpha treated as any channel.

    LANCZOS on the RGBA picture, which premultiplies: colour under alpha 0 becomes black unless the size already fits.
    """
    image = to_rgba(image)
    size = bucket_size(*image.size, resolution)
    resized = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    return resized, to_float(resized)


def resize_layers(layers: UInt8[np.ndarray, "l y x 4"], size: tuple[int, int]) -> UInt8[np.ndarray, "l Y X 4"]:
    """Layers at another size (width, height), by LANCZOS on premultiplied colour: no edge takes on hidden colour."""
    if layers.shape[2:0:-1] == size:
        return layers
    return np.stack([np.asarray(Image.fromarray(x, "RGBA").resize(size, Image.Resampling.LANCZOS)) for x in layers])
