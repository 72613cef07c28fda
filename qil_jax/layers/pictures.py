"""Picture files of any kind as 8-bit RGBA, and what is wrong with those that are none."""

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from qil_jax.errors import QilError, shown
from qil_jax.extras import require
from qil_jax.files import read_file
from qil_jax.layers.profiles import BROKEN, SRGB, image_converted, in_srgb, is_srgb, profile_name, rgb_profile, space_of

LARGEST_SIDE = 16384
"""The longest side of a picture that is read, in pixels."""
HEIF = "HEIF"
"""Pillow's name of the format that pillow-heif reads."""
PHOTOS = ("MPO", HEIF)
"""Formats of phones, whose further pictures, such as a map of depths, belong to the first."""
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
"""What the head of a HEIC or HEIF file may say."""
AVIF_BRANDS = {b"avif", b"avis"}
"""What that of an AVIF file says, which Pillow reads, beside some of the former."""
DEEP = "more than 8 bits a channel, of which 8 are kept"
"""What is noted of a picture of 16 bits."""


class ImageError(QilError):
    """A picture that cannot be used. The message names the file, the reason and the fix."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A picture as its file has it.

    Attributes:
      image: straight 8-bit RGBA, upright.
      profile: the ICC profile of its colours, as `rgb_profile` gives it.
      notes: what reading changed, in words.
    """

    image: Image.Image
    profile: bytes = SRGB
    notes: tuple[str, ...] = ()

    def in_srgb(self) -> Image.Image:
        """The picture with the colours of sRGB, as models take it."""
        return image_converted(self.image, self.profile, SRGB)


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
    """The picture in the bytes of a file as 8-bit RGBA in sRGB; see `read_picture`."""
    return read_picture(data, name, check, formats=formats).in_srgb()


def read_picture(
    data: bytes,
    name: str,
    check: Callable[[tuple[int, int]], None] = lambda _: None,
    *,
    formats: tuple[str, ...] | None = None,
) -> Picture:
    """The picture in the bytes of a file, rotated upright by its EXIF orientation.

    Of a phone's file that holds further ones, such as a map of depths, it is the first, as every viewer shows it. It
    keeps a colour profile of RGB; with one of another space, grey or CMYK, it is converted to sRGB, and noted.

    Args:
      data: the file's bytes.
      name: what the messages call it.
      check: called with width and height before pixels are decoded; may raise an ImageError.
      formats: Pillow's names of the formats that are read; None: all that it knows, some of which start programs.

    Raises:
      ImageError: if the bytes are no picture, the picture is animated, or it is HEIC and nothing reads that here.
    """
    with _opened(data, name, formats) as image:
        pictures = 1 if image.format in PHOTOS else getattr(image, "n_frames", 1)
        if pictures > 1:
            raise ImageError(f"{name}: animated or multi-page ({pictures} pictures); save one as PNG")
        check(image.size)
        image.load()
        deep = (DEEP,) if _is_deep(image, data) else ()
        picture = _coloured(ImageOps.exif_transpose(image))
        return dataclasses.replace(picture, notes=(*deep, *picture.notes))


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
    if HEIF in (formats or (HEIF,)) and _is_heic(data):
        formats = (_heif(name),)
    elif formats is not None:
        formats = tuple(kind for kind in formats if kind != HEIF)  # Pillow may not know it
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


def _is_heic(data: bytes) -> bool:
    """Whether the head of a file says HEIC or HEIF, and not AVIF, which is another codec in the same container."""
    if data[4:8] != b"ftyp":
        return False
    box = data[8 : min(int.from_bytes(data[:4], "big"), 1024)]
    brands = {box[i : i + 4] for i in range(0, len(box), 4)}
    return bool(brands & HEIC_BRANDS) and not brands & AVIF_BRANDS


def _heif(name: str) -> str:
    """Pillow's name of the format, once it knows it.

    Raises:
      ImageError: if pillow-heif is not installed.
    """
    try:
        require(f"{name}: HEIC", "pillow_heif")
    except QilError as error:
        raise ImageError(str(error)) from error
    from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]

    register_heif_opener()
    return HEIF


def _is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether a file has more bits a channel than are kept, as far as it says so."""
    bits = {"PNG": data[24:25], "TIFF": getattr(image, "tag_v2", {}).get(258, ())}.get(image.format or "", ())
    return max([*bits, image.info.get("bit_depth", 8)]) > 8 or image.mode in ("I", "F") or image.mode.startswith("I;16")


def _coloured(image: Image.Image) -> Picture:
    """A picture with its own colour profile, or in sRGB; a broken profile, or one of something else, does not count."""
    pixels, profile = to_rgba(image), image.info.get("icc_profile")
    if not profile:
        return Picture(image=pixels)
    try:
        if is_srgb(profile):
            return Picture(image=pixels)  # every bit stays
        space, name = space_of(profile), profile_name(profile)
        if space == "RGB" and image.mode != "CMYK" and (own := rgb_profile(profile)):
            return Picture(image=pixels, profile=own)
        is_grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
        fits = {"RGB": image.mode != "CMYK", "GRAY": is_grey, "CMYK": image.mode == "CMYK"}
        if not fits.get(space, False):
            return Picture(image=pixels)
        stored = {"RGB": pixels.convert("RGB"), "GRAY": pixels.getchannel("R"), "CMYK": image}[space]
        found = in_srgb(stored, profile)
    except BROKEN:
        return Picture(image=pixels)
    found.putalpha(pixels.getchannel("A"))
    return Picture(image=found, notes=(f"colours converted to sRGB from the {space} profile {shown(name)}",))


def to_rgba(image: Image.Image) -> Image.Image:
    """A picture of any mode converted to 8-bit RGBA; 16-bit and float grey values are scaled, not clipped."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, np.float64)
        top = 1.0 if image.mode == "F" and values.max(initial=0) <= 1 else 255.0 if image.mode == "F" else 65535.0
        image = Image.fromarray(np.round(values.clip(0, top) / top * 255).astype(np.uint8), "L")
    return image.convert("RGBA")
