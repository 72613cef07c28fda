"""What Photoshop documents ask for beyond alpha blending, and the pictures that they store: one judgement for all.

psd-tools' own answers are not enough: it takes effects that older versions of Photoshop wrote for none, and neither
draws nor reports Blend If, channels that are left out, and the background of an artboard (psd-tools 1.26).
"""

from enum import StrEnum

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from psd_tools import PSDImage
from psd_tools.api.layers import Artboard, Group, Layer
from psd_tools.constants import BlendMode, Tag
from psd_tools.psd.descriptor import Descriptor, List

from qil_jax.layers.compositing import over_white, psnr

FULL_RANGE = (0, 65535)
"""A range of Blend If that leaves nothing out: black and white, two bytes each, at the ends of the scale."""
TRANSPARENT = 1
"""The kind of an artboard's background that is none."""
ALIKE = 40.0
"""PSNR in dB from which two pictures differ by little more than rounding."""

THUMBNAIL_SIDE = 32
"""Longer side, in pixels, at which a thumbnail is compared: neither its JPEG nor its filter shows there."""
SMALLEST_THUMBNAIL = 64
"""Longer side, in pixels, below which a thumbnail is not compared: its JPEG shows even then."""


class Feature(StrEnum):
    """What in a layer or group alpha blending of stored pixels cannot say."""

    BLEND_MODE = "a blend mode"
    GROUP_OPACITY = "an opacity of a whole group"
    FILL_OPACITY = "a fill opacity"
    MASK = "a mask"
    CLIPPING = "a clipping"
    EFFECTS = "effects"
    BLEND_IF = "Blend If"
    CHANNELS = "channels that are left out"
    BACKGROUND = "the background colour of an artboard"
    CROP = "layers that reach beyond their artboard"
    DOUBLE_CHANNEL = "one channel twice"


UNDRAWN = (Feature.BLEND_IF, Feature.CHANNELS, Feature.BACKGROUND)
"""Features that psd-tools' compositor ignores."""


def features_of(layer: Layer) -> set[Feature]:
    """The features of a layer or group, not of the layers in it. Effects count if they are switched on."""
    fill = layer.tagged_blocks.get_data(Tag.BLEND_FILL_OPACITY, 255)
    channels = [channel.id for channel in layer._record.channel_info]
    found = {
        Feature.BLEND_MODE: layer.blend_mode not in (BlendMode.NORMAL, BlendMode.PASS_THROUGH),
        Feature.GROUP_OPACITY: isinstance(layer, Group) and layer.opacity != 255,
        Feature.FILL_OPACITY: fill != 255,
        Feature.MASK: layer.has_mask() or layer.has_vector_mask(),
        Feature.CLIPPING: layer.clipping,
        Feature.EFFECTS: _shows_effects(layer),
        Feature.BLEND_IF: _blends_by_value(layer),
        Feature.CHANNELS: bool(layer.tagged_blocks.get_data(Tag.CHANNEL_BLENDING_RESTRICTIONS_SETTING)),
        Feature.BACKGROUND: isinstance(layer, Artboard) and _background(layer) != TRANSPARENT,
        Feature.CROP: isinstance(layer, Artboard) and _is_cropped(layer),
        Feature.DOUBLE_CHANNEL: len({*channels}) < len(channels),  # damaged: readers choose differently
    }
    return {feature for feature, is_there in found.items() if is_there}


def name_of(layer: Layer) -> str:
    """The name of a layer, without the NULs with which some programs end it."""
    return layer.name.rstrip("\0")


def stored_picture(psd: PSDImage, *, to_srgb: bool = True) -> UInt8[np.ndarray, "y x 4"] | None:
    """The merged picture that a document stores, as straight RGBA; None if it stores none.

    Args:
      psd: the document.
      to_srgb: whether its colours are converted by the document's profile, or left in it.
    """
    picture = psd.topil(apply_icc=to_srgb) if psd.has_preview() else None
    return None if picture is None else rgba(picture)


def rgba(picture: Image.Image) -> UInt8[np.ndarray, "y x 4"]:
    """A picture of any mode as RGBA, opaque if it has no transparency."""
    return np.asarray(picture.convert("RGBA" if picture.has_transparency_data else "RGB").convert("RGBA"))


def psnr_stored(ours: UInt8[np.ndarray, "y x 4"], stored: UInt8[np.ndarray, "y x 4"]) -> float:
    """PSNR in dB of a composite against a stored picture, by the convention of stored pictures that gives the highest.

    These are: blended over white, with alpha, or straight without alpha. 0 for pictures of different sizes.
    """
    if stored.shape != ours.shape:
        return 0.0
    readings = [psnr(over_white(ours), over_white(stored)), psnr(ours, stored)]
    if (stored[..., 3] == 255).all():
        readings.append(psnr(ours, np.concatenate([stored[..., :3], ours[..., 3:]], -1)))
    return max(readings)


def psnr_thumbnail(ours: UInt8[np.ndarray, "y x 4"], psd: PSDImage) -> float | None:
    """PSNR in dB of a composite against a document's thumbnail, both reduced to `THUMBNAIL_SIDE`.

    None if there is none, or one below `SMALLEST_THUMBNAIL`. A thumbnail is a file of its own, so damage to layers or
    to the merged picture does not reach it.
    """
    try:
        thumbnail = psd.thumbnail()
    except Exception:  # a JPEG, which Pillow's decoder may refuse in many ways; a broken one says nothing
        thumbnail = None
    if thumbnail is None or max(thumbnail.size) < SMALLEST_THUMBNAIL:
        return None
    factor = THUMBNAIL_SIDE / max(thumbnail.size)
    width, height = (max(1, round(side * factor)) for side in thumbnail.size)
    pictures = (Image.fromarray(over_white(ours)), thumbnail.convert("RGB").convert("RGBA"))
    return psnr(*(np.asarray(picture.resize((width, height), Image.Resampling.BOX)) for picture in pictures))


def _shows_effects(layer: Layer) -> bool:
    """Whether an effect is switched on, in a document of any age: `present` came with Photoshop CC 2015."""
    blocks = layer.tagged_blocks
    versions = (
        Tag.OBJECT_BASED_EFFECTS_LAYER_INFO,
        Tag.OBJECT_BASED_EFFECTS_LAYER_INFO_V0,
        Tag.OBJECT_BASED_EFFECTS_LAYER_INFO_V1,
    )
    block = next((block for tag in versions if (block := blocks.get_data(tag)) is not None), None)
    if block is None:  # before Photoshop 6 there was another block, which later versions write beside these
        oldest = blocks.get_data(Tag.EFFECTS_LAYER) or {}
        return any(getattr(oldest[key], "enabled", 0) for key in oldest)
    if not isinstance(block, Descriptor):
        return True  # there are some, which cannot be read
    if not bool(block.get(b"masterFXSwitch", True)):
        return False
    values = [block[key] for key in block]
    effects = [effect for value in values for effect in (value if isinstance(value, List) else [value])]
    return any(isinstance(x, Descriptor) and bool(x.get(b"enab")) and bool(x.get(b"present", True)) for x in effects)


def _blends_by_value(layer: Layer) -> bool:
    """Whether a layer hides where it, or what is below it, is dark or light."""
    ranges = layer._record.blending_ranges
    pairs = [*(ranges.composite_ranges or ()), *(pair for pairs in ranges.channel_ranges or () for pair in pairs)]
    return any(tuple(pair) != FULL_RANGE for pair in pairs)


def _background(artboard: Artboard) -> int:
    """The kind of an artboard's background: 1 none, 2 white, 3 black, 4 a colour."""
    data = None
    for tag in (Tag.ARTBOARD_DATA1, Tag.ARTBOARD_DATA2, Tag.ARTBOARD_DATA3):
        data = artboard.tagged_blocks.get_data(tag, data)
    return TRANSPARENT if data is None else int(data.get(b"artboardBackgroundType", TRANSPARENT))


def _is_cropped(artboard: Artboard) -> bool:
    left, top, right, bottom = artboard.bbox
    boxes = [layer.bbox for layer in artboard.descendants() if layer.has_pixels() and layer.is_visible()]
    return any(box[0] < left or box[1] < top or box[2] > right or box[3] > bottom for box in boxes)
