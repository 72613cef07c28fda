"""Photoshop documents that tests write themselves."""

import io
import time
from typing import Any

import numpy as np
from PIL import Image
from psd_tools import PSDImage
from psd_tools.api.layers import Layer
from psd_tools.constants import BlendMode, EffectOSType, Resource, Tag
from psd_tools.psd import descriptor
from psd_tools.psd.effects_layer import EffectsLayer, SolidFillInfo
from psd_tools.psd.image_resources import ImageResource, ThumbnailResource
from psd_tools.psd.layer_and_mask import LayerBlendingRanges
from psd_tools.psd.tagged_blocks import ChannelBlendingRestrictionsSetting, TaggedBlock
from psd_tools.terminology import Unit

from qil_jax.documents.prepare import prepare

SIDE = 48


def texture(seed: int, height: int = SIDE, width: int = SIDE, *, alpha: str = "opaque") -> Image.Image:
    """Smooth random colour; alpha is opaque, soft (a disc with a soft rim) or random."""
    random = np.random.default_rng(seed)
    colour = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).resize((width, height))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    match alpha:
        case "opaque":
            values = np.full((height, width), 255)
        case "soft":
            values = np.clip((1 - np.hypot(x, y)) * 4, 0, 1) * 255
        case _:
            values = random.integers(0, 256, (height, width))
    colour.putalpha(Image.fromarray(values.astype(np.uint8)))
    return colour


def document(mode: str = "RGBA", side: int = SIDE) -> PSDImage:
    return PSDImage.new(mode, (side, side))


def saved(psd: PSDImage) -> bytes:
    stream = io.BytesIO()
    psd.save(stream)
    return stream.getvalue()


def design(seed: int = 0) -> bytes:
    """Groups in groups, opacities, masks, clipping, blend modes, hidden and outlying layers in one document."""
    psd = document()
    psd.create_pixel_layer(texture(seed + 0), name="ground")
    group = psd.create_group(name="group", open_folder=True)
    group.create_pixel_layer(texture(seed + 1, 30, 20, alpha="soft"), name="disc", top=5, left=3)
    inner = group.create_group(name="inner", blend_mode=BlendMode.NORMAL)
    inner.create_pixel_layer(texture(seed + 2, 20, 30, alpha="random"), name="noise", top=20, left=10)
    inner.create_pixel_layer(texture(seed + 3, 10, 30, alpha="soft"), name="soft", top=25, left=12)
    inner.opacity = 150
    base = psd.create_pixel_layer(texture(seed + 4, 24, 24, alpha="soft"), name="base", top=20, left=20)
    clipped = psd.create_pixel_layer(texture(seed + 5, 24, 40), name="clipped", top=25, left=5)
    clipped.clipping = True
    psd.create_pixel_layer(
        texture(seed + 6, 20, 20, alpha="soft"), name="shade", top=2, left=2, blend_mode=BlendMode.MULTIPLY
    )
    masked = psd.create_pixel_layer(texture(seed + 7, 16, 40), name="masked", top=30, left=-8)
    masked.create_mask(Image.linear_gradient("L").resize((40, 16)), top=30, left=-8)
    masked.opacity = 200
    psd.create_pixel_layer(texture(seed + 8), name="hidden").visible = False
    base.name = "Basis \u4e2d\u6587 \U0001f600"
    return saved(psd)


def prepare_slowly(data: bytes, config: Any) -> Any:
    """Replaces `prepare` by one that sleeps, as on a busy machine: much wall-clock time, little CPU time."""
    time.sleep(3)
    return prepare(data, config)


def prepare_for_ever(data: bytes, config: Any) -> Any:
    """Replaces `prepare` by one that never ends for documents that contain `for ever`."""
    while data.endswith(b"for ever"):
        pass
    return prepare(data, config)


def block(layer: Layer, tag: Tag, data: Any) -> None:
    """Give a layer a tagged block."""
    layer.tagged_blocks[tag] = TaggedBlock(signature=b"8BIM", key=tag, data=data)


def effect(layer: Layer, *, enabled: bool = True, present: bool | None = None) -> None:
    """Give a layer a red colour overlay, by default as Photoshop wrote it before CC 2015: without the key `present`."""
    red = descriptor.Descriptor(classID=b"RGBC")
    for key, value in ((b"Rd  ", 255.0), (b"Grn ", 0.0), (b"Bl  ", 0.0)):
        red[key] = descriptor.Double(value)
    overlay = descriptor.Descriptor(classID=b"SoFi")
    overlay[b"enab"] = descriptor.Bool(enabled)
    if present is not None:
        overlay[b"present"] = descriptor.Bool(present)
    overlay[b"Md  "] = descriptor.Enumerated(typeID=b"BlnM", enum=b"Nrml")
    overlay[b"Opct"] = descriptor.UnitFloat(unit=Unit.Percent, value=100.0)
    overlay[b"Clr "] = red
    effects = descriptor.DescriptorBlock2(version=0, data_version=16, classID=b"null")
    effects[b"Scl "] = descriptor.UnitFloat(unit=Unit.Percent, value=100.0)
    effects[b"masterFXSwitch"] = descriptor.Bool(True)
    effects[b"SoFi"] = overlay
    block(layer, Tag.OBJECT_BASED_EFFECTS_LAYER_INFO, effects)


def oldest_effect(layer: Layer) -> None:
    """Give a layer a solid fill as Photoshop 5 wrote it."""
    fill = SolidFillInfo(version=2, enabled=1, opacity=255)
    block(layer, Tag.EFFECTS_LAYER, EffectsLayer(items=[(EffectOSType.SOLID_FILL, fill)]))


def blend_if(layer: Layer) -> None:
    """Hide a layer where it is dark."""
    layer._record.blending_ranges = LayerBlendingRanges(composite_ranges=[(100 * 257, 65535), (0, 65535)])


def without_red(layer: Layer) -> None:
    """Leave the red channel out of a layer's blending."""
    block(layer, Tag.CHANNEL_BLENDING_RESTRICTIONS_SETTING, ChannelBlendingRestrictionsSetting([0]))


def artboard(group: Layer, ground: int, box: tuple[int, int, int, int] = (0, 0, SIDE, SIDE)) -> None:
    """Make an artboard of a group; its ground is 1 none, 2 white, 3 black."""
    rectangle = descriptor.Descriptor(classID=b"classFloatRect")
    for key, value in zip((b"Left", b"Top ", b"Rght", b"Btom"), box, strict=True):
        rectangle[key] = descriptor.Double(float(value))
    data = descriptor.DescriptorBlock(classID=b"artboard")
    data[b"artboardRect"], data[b"artboardBackgroundType"] = rectangle, descriptor.Integer(ground)
    block(group, Tag.ARTBOARD_DATA1, data)


def with_stored_picture(psd: PSDImage, picture: Image.Image) -> bytes:
    """A document that stores a picture of our choice."""
    psd._record.image_data.set_data([band.tobytes() for band in picture.split()], psd._record.header)
    stream = io.BytesIO()
    psd._record.write(stream)
    return stream.getvalue()


def with_thumbnail(psd: PSDImage, picture: Image.Image) -> None:
    """Give a document a thumbnail."""
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=90)
    width, height = picture.size
    thumbnail = ThumbnailResource(
        fmt=1, width=width, height=height, row=width * 3, total_size=width * 3 * height, data=stream.getvalue()
    )
    psd.image_resources[Resource.THUMBNAIL_RESOURCE] = ImageResource(
        key=Resource.THUMBNAIL_RESOURCE.value, data=thumbnail
    )
