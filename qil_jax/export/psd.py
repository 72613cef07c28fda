"""Layered images as Photoshop documents."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from psd_tools import PSDImage
from psd_tools.api.layers import GroupMixin, Layer, PixelLayer
from psd_tools.constants import BlendMode, Tag

from qil_jax.errors import QilError
from qil_jax.export.bounds import require_depth
from qil_jax.export.names import plain_text
from qil_jax.export.nodes import GroupNode, Node, leaves, nodes_of, tree_of
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite_8bit, over_white
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.pictures import read_bytes

LARGEST_SIDE = 30_000
"""Limit of the PSD format in pixels."""
LONGEST_NAME = 255
"""Limit of the PSD format in characters; longer names are cut."""
MOST_BYTES = 2 << 30
"""Bytes that one picture of a document that is read may take, by psd-tools' own estimate."""


def write_psd(stack: LayeredImage | LayerTree, file: Path) -> None:
    """Write layers in tight boxes with their names, and their composite as the merged preview.

    Groups become groups. An empty layer is written as one transparent pixel. Colour under alpha 0 is kept inside a
    layer's box.

    Raises:
      QilError: if the canvas is larger than the format allows.
      FileExistsError: if the file exists.
    """
    tree = LayerTree.of(stack)
    width, height = tree.layered.size
    if max(width, height) > LARGEST_SIDE:
        raise QilError(f"{file}: {width}x{height} pixels do not fit a PSD (at most {LARGEST_SIDE} a side)")
    document = PSDImage.new("RGBA", (width, height), depth=8)
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

    Opacity goes into alpha; hidden layers are left out.

    Raises:
      QilError: if the file is no PSD, or needs more than alpha blending; the message names the layer and the feature.
    """
    data = read_bytes(file)
    try:
        document = PSDImage.open(io.BytesIO(data), max_alloc_bytes=MOST_BYTES)
        return tree_of(_nodes(document), document.size)
    except QilError as error:
        raise QilError(f"{file}: {error}; tools/build_dataset.py reads documents of every kind") from error
    except Exception as error:  # the parser raises arbitrary exceptions on malformed bytes
        raise QilError(f"{file}: cannot be read as a PSD ({error}); save it again") from error


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


def _nodes(parent: GroupMixin, depth: int = 0) -> tuple[Node, ...]:
    require_depth(depth)
    found: list[Node] = []
    for layer in parent:
        problem = _not_plain(layer)
        if problem is not None:
            raise QilError(f"layer '{layer.name}' {problem}")
        if not layer.is_visible():
            continue
        if isinstance(layer, GroupMixin):
            found.append(GroupNode(name=layer.name, nodes=_nodes(layer, depth + 1)))
            continue
        picture = layer.topil()
        pixels = np.zeros((1, 1, 4), np.uint8) if picture is None else np.array(picture.convert("RGBA"))
        pixels[..., 3] = np.rint(pixels[..., 3] * (layer.opacity / 255))
        found.append(BoxedLayer(pixels=pixels, left=layer.left, top=layer.top, name=layer.name))
    return tuple(found)


def _not_plain(layer: Layer) -> str | None:
    """What in a layer alpha blending cannot say; None if it is plain."""
    is_group = isinstance(layer, GroupMixin)
    if not is_group and not isinstance(layer, PixelLayer):
        return f"is of the kind {layer.kind}"
    if layer.blend_mode is not BlendMode.NORMAL and not (is_group and layer.blend_mode is BlendMode.PASS_THROUGH):
        return f"has the blend mode {layer.blend_mode.name.lower()}"
    if is_group and layer.opacity != 255:
        return "is a group with an opacity"
    fill = layer.tagged_blocks.get_data(Tag.BLEND_FILL_OPACITY, 255)
    channels = [channel.id for channel in layer._record.channel_info]
    for feature, is_there in {
        "one channel twice": len({*channels}) < len(channels),  # damaged: readers choose differently between the two
        "a fill opacity": fill != 255,
        "a mask": layer.has_mask() or layer.has_vector_mask(),
        "a clipping": layer.clipping,
        "effects": layer.has_effects(),
    }.items():
        if is_there:
            return f"has {feature}"
    return None
