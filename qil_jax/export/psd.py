"""Layered images as Photoshop documents."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from psd_tools import PSDImage
from psd_tools.api.layers import GroupMixin, Layer, PixelLayer
from psd_tools.constants import BlendMode, ColorMode, Resource
from psd_tools.psd.image_resources import ImageResource

from qil_jax.errors import QilError
from qil_jax.export.bounds import require_depth
from qil_jax.export.names import plain_text
from qil_jax.export.nodes import GroupNode, Node, leaves, nodes_of, tree_of
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite_8bit, over_white
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.photoshop import ALIKE, Feature, features_of, name_of, psnr_stored, stored_picture
from qil_jax.layers.pictures import read_bytes
from qil_jax.layers.profiles import SRGB, rgb_profile
from qil_jax.programs import called

LARGEST_SIDE = 30_000
"""Limit of the PSD format in pixels."""
LONGEST_NAME = 255
"""Limit of the PSD format in characters; longer names are cut."""
MOST_BYTES = 2 << 30
"""Bytes that one picture of a document that is read may take, by psd-tools' own estimate."""


def write_psd(stack: LayeredImage | LayerTree, file: Path) -> None:
    """Write layers in tight boxes with their names, and their composite as the merged preview.

    Groups become groups. An empty layer is written as one transparent pixel. Colour under alpha 0 is kept inside a
    layer's box. A colour profile other than sRGB is embedded.

    Raises:
      QilError: if the canvas is larger than the format allows.
      FileExistsError: if the file exists.
    """
    tree = LayerTree.of(stack)
    width, height = tree.layered.size
    if max(width, height) > LARGEST_SIDE:
        raise QilError(f"{file}: {width}x{height} pixels do not fit a PSD (at most {LARGEST_SIDE} a side)")
    document = PSDImage.new("RGBA", (width, height), depth=8)
    if profile := tree.layered.profile:
        document.image_resources[Resource.ICC_PROFILE] = ImageResource(key=Resource.ICC_PROFILE, data=profile)
    nodes = nodes_of(tree)
    _add(document, nodes)
    record = document._record  # saving by the document would replace the preview by the library's own composite
    composite = composite_8bit(leaves(nodes), tree.layered.size)
    # The format's convention for a merged picture with transparency: colour over white, alpha beside it.
    preview = np.concatenate([over_white(composite)[..., :3], composite[..., 3:]], axis=-1)
    record.image_data.set_data([preview[..., c].tobytes() for c in range(4)], record.header)
    info = record.layer_and_mask_information.layer_info
    assert info is not None
    info.layer_count = -abs(info.layer_count)  # negative: the preview's fourth channel is its transparency
    with file.open("xb") as stream:
        record.write(stream)


def read_psd(file: Path) -> LayerTree:
    """The layers of a document that consists of plain layers and groups only, as `write_psd` makes them.

    Opacity goes into alpha; hidden layers are left out; a colour profile of RGB is kept. Where the layers give another
    picture than the one that the document stores, `decisions` says so.

    Raises:
      QilError: if the file is no PSD, or needs more than alpha blending; the message names the layer and the feature.
    """
    data = read_bytes(file)
    try:
        document = PSDImage.open(io.BytesIO(data), max_alloc_bytes=MOST_BYTES)
        profile = _profile(document)
        nodes = _nodes(document, profile)
        tree = tree_of(nodes, document.size, profile=profile)
        layered = dataclasses.replace(tree.layered, decisions=_difference(leaves(nodes), document, profile))
        return dataclasses.replace(tree, layered=layered)
    except QilError as error:
        raise QilError(f"{file}: {error}; {called('build-dataset')} reads documents of every kind") from error
    except Exception as error:  # the parser raises arbitrary exceptions on malformed bytes
        raise QilError(f"{file}: cannot be read as a PSD ({error}); save it again") from error


def _profile(document: PSDImage) -> bytes:
    """The profile in which a document's layers are read; psd-tools converts to sRGB what is none of RGB."""
    stored = document.image_resources.get_data(Resource.ICC_PROFILE)
    return rgb_profile(stored) if stored and document.color_mode is ColorMode.RGB else SRGB


def _difference(layers: Sequence[BoxedLayer], document: PSDImage, profile: bytes) -> tuple[str, ...]:
    """A sentence if the layers do not give the picture that the document stores."""
    stored = stored_picture(document, to_srgb=not profile)
    decibels = ALIKE if stored is None else psnr_stored(composite_8bit(layers, document.size), stored)
    if decibels >= ALIKE:
        return ()
    return (f"the layers give another picture than the one that the document stores: {decibels:.1f} dB",)


def _add(parent: GroupMixin, nodes: Sequence[Node]) -> None:
    for node in nodes:
        # Non-Latin names fail at creation; assigned afterwards they are written as Unicode.
        if isinstance(node, GroupNode):
            layer = parent.create_group(name="group", blend_mode=BlendMode.NORMAL)
            _add(layer, node.nodes)
        else:
            picture = Image.fromarray(node.pixels, "RGBA")
            layer = parent.create_pixel_layer(picture, name="layer", top=node.top, left=node.left)
        layer.name = plain_text(node.name)[:LONGEST_NAME]


def _nodes(parent: GroupMixin, profile: bytes, depth: int = 0) -> tuple[Node, ...]:
    require_depth(depth)
    found: list[Node] = []
    for layer in parent:
        if not layer.is_visible():
            continue
        problem = _not_plain(layer)
        if problem is not None:
            raise QilError(f"layer '{name_of(layer)}' {problem}")
        if isinstance(layer, GroupMixin):
            found.append(GroupNode(name=name_of(layer), nodes=_nodes(layer, profile, depth + 1)))
            continue
        picture = layer.topil(apply_icc=not profile)
        pixels = np.zeros((1, 1, 4), np.uint8) if picture is None else np.array(picture.convert("RGBA"))
        pixels[..., 3] = np.rint(pixels[..., 3] * (layer.opacity / 255))
        found.append(BoxedLayer(pixels=pixels, left=layer.left, top=layer.top, name=name_of(layer)))
    return tuple(found)


def _not_plain(layer: Layer) -> str | None:
    """What in a layer alpha blending cannot say; None if it is plain."""
    if not isinstance(layer, GroupMixin | PixelLayer):
        return f"is of the kind {layer.kind}"
    found = features_of(layer)
    if Feature.BLEND_MODE in found:
        return f"has the blend mode {layer.blend_mode.name.lower()}"
    return f"has {', '.join(sorted(found))}" if found else None
