"""Layered images as OpenRaster files (openraster.org, version 0.0.3), which Krita, GIMP and MyPaint open."""

import itertools
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from qil_jax.errors import QilError
from qil_jax.export.archive import member, packed
from qil_jax.export.names import plain_text
from qil_jax.export.nodes import GroupNode, Node, boxed_layers, nodes_of, tree_of
from qil_jax.export.png import encoded
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite_8bit
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.pictures import LARGEST_SIDE, decoded

MIMETYPE = "image/openraster"
THUMBNAIL = 256
"""Longest side of the thumbnail in pixels, as the format has it."""
NORMAL = "svg:src-over"
"""The one blend mode that alpha blending knows."""


def write_ora(stack: LayeredImage | LayerTree, file: Path) -> None:
    """Write layers with their names in boxes that hold all that is not zero, their composite, and a thumbnail.

    Groups become nested stacks. Every byte of the layers is kept, colour under alpha 0 included.

    Raises:
      FileExistsError: if the file exists.
    """
    tree = LayerTree.of(stack)
    nodes = nodes_of(tree, has_hidden_colour=True)
    with ThreadPoolExecutor(1) as beside:
        previews = beside.submit(_previews, nodes, tree.layered.size)
        layers = encoded([layer.pixels for layer in boxed_layers(nodes)])
        merged, small = previews.result()
    width, height = tree.layered.size
    image = ElementTree.Element("image", version="0.0.3", w=str(width), h=str(height), xres="72", yres="72")
    sources = [f"data/layer{i:03d}.png" for i in range(len(layers))]
    _describe(ElementTree.SubElement(image, "stack"), nodes, iter(sources))
    members = {
        "mimetype": MIMETYPE.encode(),
        "stack.xml": ElementTree.tostring(image, encoding="UTF-8", xml_declaration=True),
        **dict(zip(sources, layers, strict=True)),
        "mergedimage.png": merged,
        "Thumbnails/thumbnail.png": small,
    }
    with file.open("xb") as stream:
        packed(stream, members)


def read_ora(file: Path) -> LayerTree:
    """The layers of an OpenRaster file that consists of plain layers and groups.

    Opacity goes into alpha; hidden layers are left out.

    Raises:
      QilError: if the file is none, or needs more than alpha blending; the message names the layer and the feature.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            image = _parsed(member(archive, "stack.xml"))
            size = int(image.attrib["w"]), int(image.attrib["h"])
            if not 0 < min(size) <= max(size) <= LARGEST_SIDE:
                raise QilError(f"a canvas of {size[0]}x{size[1]} pixels; sides of 1 to {LARGEST_SIDE} are read")
            stack = image.find("stack")
            return tree_of([] if stack is None else _nodes(stack, archive), size)
    except QilError as error:
        raise QilError(f"{file}: {error}") from error
    except Exception as error:  # the unpacker raises arbitrary exceptions on malformed bytes
        raise QilError(f"{file}: cannot be read as OpenRaster ({error}); save it again") from error


def _previews(nodes: tuple[Node, ...], size: tuple[int, int]) -> list[bytes]:
    """The composite and its thumbnail as PNGs, which are written for speed: programs show them until they have more."""
    composite = composite_8bit(boxed_layers(nodes), size)
    thumbnail = Image.fromarray(composite, "RGBA")
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    return encoded([composite, np.asarray(thumbnail)], level=2)


def _describe(parent: ElementTree.Element, nodes: tuple[Node, ...], sources: Iterator[str]) -> None:
    """Add layers and nested stacks to a stack, whose first entry is its uppermost; sources come bottom to top."""
    shown: Mapping[str, str] = {"opacity": "1.0", "visibility": "visible", "composite-op": NORMAL}
    for node in nodes:
        name = plain_text(node.name)
        if isinstance(node, GroupNode):
            element = ElementTree.Element("stack", {"name": name, "isolation": "isolate", **shown})
            _describe(element, node.nodes, sources)
        else:
            place = {"src": next(sources), "x": str(node.left), "y": str(node.top)}
            element = ElementTree.Element("layer", {"name": name, **place, **shown})
        parent.insert(0, element)


def _parsed(data: bytes) -> ElementTree.Element:
    """The XML of a file that may be hostile: one that declares entities, which could grow without bound, is refused."""
    if b"<!" in data.replace(b"<!--", b""):
        raise QilError("its stack.xml declares a document type, which OpenRaster does not know")
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise QilError(f"its stack.xml is no XML ({error})") from error


def _nodes(stack: ElementTree.Element, archive: zipfile.ZipFile) -> tuple[Node, ...]:
    found: list[Node] = []
    for element, number in zip(reversed(stack), itertools.count(1), strict=False):
        name, opacity = element.get("name", f"Layer {number}"), float(element.get("opacity", 1))
        mode = element.get("composite-op", NORMAL)
        if mode != NORMAL:
            raise QilError(f"layer '{name}' has the blend mode {mode}: merge it in the program that made it")
        if element.get("visibility", "visible") == "hidden":
            continue
        if element.tag == "stack":
            if opacity != 1:
                raise QilError(f"group '{name}' has an opacity: give it to its layers in the program that made it")
            found.append(GroupNode(name=name, nodes=_nodes(element, archive)))
        elif element.tag == "layer":
            source = element.attrib["src"]
            pixels = np.array(decoded(member(archive, source), source))
            pixels[..., 3] = np.rint(pixels[..., 3] * opacity)
            place = {"left": int(element.get("x", 0)), "top": int(element.get("y", 0))}
            found.append(BoxedLayer(pixels=pixels, name=name, **place))
    return tuple(found)
