"""Colour profiles (ICC) of pictures and layers, converted by littlecms."""

import io
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms

SRGB = b""
"""The profile of what is in sRGB, the colours of models, for which files need none."""
BROKEN = (ImageCms.PyCMSError, OSError, UnicodeDecodeError)
"""What a profile that is none raises."""


def converted(pixels: UInt8[np.ndarray, "y x 4"], source: bytes, target: bytes) -> UInt8[np.ndarray, "y x 4"]:
    """Straight RGBA in the colours of another profile; alpha stays, and colours that the target lacks are clipped.

    Args:
      pixels: straight RGBA.
      source: the ICC profile of the pixels, as `rgb_profile` gives it.
      target: the one of the result, likewise.
    """
    if source == target:
        return pixels
    return np.asarray(image_converted(Image.fromarray(np.ascontiguousarray(pixels), "RGBA"), source, target))


def image_converted(image: Image.Image, source: bytes, target: bytes) -> Image.Image:
    """An 8-bit RGBA picture, as `converted` converts pixels; itself if nothing is to be converted."""
    if source == target:
        return image
    intent = _intent(_opened(source or target))
    found = ImageCms.profileToProfile(image, _opened(source), _opened(target), renderingIntent=intent)
    assert found is not None  # as nothing is converted in place
    return found


def in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """A picture of any colour space with a profile of that space, as 8-bit RGB without alpha.

    Raises:
      PyCMSError: if profile and picture do not fit together.
    """
    source = _opened(profile)
    found = ImageCms.profileToProfile(image, source, _opened(SRGB), renderingIntent=_intent(source), outputMode="RGB")
    assert found is not None  # as nothing is converted in place
    return found


def rgb_profile(data: bytes) -> bytes:
    """A profile itself if layers can be written in it; SRGB if it is that, broken, one way only, or none of RGB."""
    try:
        profile = _opened(data)
        if not data or is_srgb(data) or space_of(data) != "RGB":
            return SRGB
        for way in ((profile, _opened(SRGB)), (_opened(SRGB), profile)):
            ImageCms.buildTransform(*way, "RGBA", "RGBA", _intent(profile))
    except BROKEN:
        return SRGB
    return data


def is_srgb(profile: bytes) -> bool:
    """Whether a profile, which is not empty, calls itself sRGB and is that within two levels: linear ones are not.

    Raises:
      PyCMSError, OSError, UnicodeDecodeError: if it is broken.
    """
    if "srgb" not in profile_name(profile).lower():
        return False
    if space_of(profile) != "RGB":
        return True
    levels = np.linspace(0, 255, 6, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(6, 36, 3)
    found = np.asarray(in_srgb(Image.fromarray(colours, "RGB"), profile))
    return int(np.abs(found.astype(int) - colours).max()) <= 2


def space_of(profile: bytes) -> str:
    """The colour space of a profile, as ICC calls it: RGB, GRAY, CMYK, ...

    Raises:
      PyCMSError, OSError: if it is broken.
    """
    return _opened(profile).profile.xcolor_space.strip()


def profile_name(profile: bytes) -> str:
    """What a profile calls itself.

    Raises:
      PyCMSError, OSError, UnicodeDecodeError: if it is broken.
    """
    return ImageCms.getProfileDescription(_opened(profile)).strip() if profile else "sRGB"


def _opened(profile: bytes) -> Any:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile) if profile else ImageCms.createProfile("sRGB"))


def _intent(profile: Any) -> ImageCms.Intent:
    """The rendering intent that a profile asks for, or the usual one."""
    intent = profile.profile.rendering_intent
    return ImageCms.Intent(intent if intent in tuple(ImageCms.Intent) else 0)
