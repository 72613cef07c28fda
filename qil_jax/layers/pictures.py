"""Picture files of any kind as 8-bit RGBA, and what is wrong with those that are none."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from qil_jax.errors import QilError
from qil_jax.files import read_file

LARGEST_SIDE = 16384
"""The longest side of a picture that is read, in pixels."""
SRGB = ImageCms.createProfile("sRGB")
"""The profile of the colours that models and layers have."""


class ImageError(QilError):
    """A picture that cannot be used. The message names the file, the reason and the fix."""


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, as `files.read_file` reads them.

    Raises:
      ImageError: if the file cannot be read, or is none.
    """
    try:
        return read_file(path)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except QilError as error:
        raise ImageError(str(error)) from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); see to the file or its permissions") from error


def decoded(
    data: bytes,
    name: str,
    check: Callable[[tuple[int, int]], None] = lambda _: None,
    *,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    """The picture in the bytes of a file as 8-bit RGBA, rotated upright by its EXIF orientation.

    Of the JPEG of a phone that holds further ones, such as a map of depths, it is the first, as every viewer shows it.
    Colours are those of sRGB: a picture with another colour profile is converted.

    Args:
      data: the file's bytes.
      name: what the messages call it.
      check: called with width and height before pixels are decoded; may raise an ImageError.
      formats: Pillow's names of the formats that are read; None: all that it knows, some of which start programs.

    Raises:
      ImageError: if the bytes are no picture, or the picture is animated.
    """
    with _opened(data, name, formats) as image:
        pictures = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if pictures > 1:
            raise ImageError(f"{name}: animated or multi-page ({pictures} pictures); save one as PNG")
        check(image.size)
        image.load()
        return _in_srgb(ImageOps.exif_transpose(image))


def picture_size(data: bytes, name: str, *, formats: tuple[str, ...] | None = None) -> tuple[int, int]:
    """Width and height of the picture in the bytes of a file, as stored; nothing but its header is decoded.

    Args:
      data: the file's bytes.
      name: what the messages call it.
      formats: as of `decoded`.

    Raises:
      ImageError: if the bytes are no picture.
    """
    with _opened(data, name, formats) as image:
        return image.size


@contextlib.contextmanager
def _opened(data: bytes, name: str, formats: tuple[str, ...] | None) -> Iterator[Image.Image]:
    """The picture in the bytes of a file, whose pixels are not decoded yet; what goes wrong within is an ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of large pictures and malformed metadata
            with Image.open(io.BytesIO(data), formats=formats) as image:
                yield image
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too many pixels ({error}); scale it down first") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: cannot be read as a picture; open and save it again as PNG") from error
    except Exception as error:  # Pillow's decoders raise arbitrary exceptions on malformed bytes
        raise ImageError(f"{name}: cannot be read as a picture ({error}); open and save it again as PNG") from error


def _in_srgb(image: Image.Image) -> Image.Image:
    """8-bit RGBA of a picture, converted from its own colour profile as viewers do; a broken profile does not count."""
    pixels, profile = to_rgba(image), image.info.get("icc_profile")
    if not profile:
        return pixels
    try:
        own: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(own).lower():
            return pixels  # every bit stays
        space, intent = own.profile.xcolor_space.strip(), own.profile.rendering_intent
        sources = {"RGB": pixels, "GRAY": pixels.getchannel("R"), "CMYK": image}
        if space not in sources or (space == "CMYK") != (image.mode == "CMYK"):
            return pixels  # the profile of something else
        mode = "RGBA" if space == "RGB" else "RGB"
        intent = ImageCms.Intent(intent if intent in tuple(ImageCms.Intent) else 0)
        found = ImageCms.profileToProfile(sources[space], own, SRGB, renderingIntent=intent, outputMode=mode)
    except (ImageCms.PyCMSError, OSError, UnicodeDecodeError):
        return pixels
    assert found is not None  # as nothing is converted in place
    if mode == "RGB":
        found.putalpha(pixels.getchannel("A"))
    return found


def to_rgba(image: Image.Image) -> Image.Image:
    """A picture of any mode converted to 8-bit RGBA; 16-bit and float grey values are scaled, not clipped."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, np.float64)
        top = 1.0 if image.mode == "F" and values.max(initial=0) <= 1 else 255.0 if image.mode == "F" else 65535.0
        image = Image.fromarray(np.round(values.clip(0, top) / top * 255).astype(np.uint8), "L")
    return image.convert("RGBA")
