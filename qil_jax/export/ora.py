"""Layered images as OpenRaster files (openraster.org, version 0.0.3), which Krita, GIMP and MyPaint open."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from qil_jax.errors import QilError
from qil_jax.export.archive import members, packed
from qil_jax.export.bounds import require_depth
from qil_jax.export.manifest import ReadFile
from qil_jax.export.names import plain_text
from qil_jax.export.nodes import GroupNode, Node, ReadNode, leaves, nodes_of, tree_of
from qil_jax.export.placed import PlacedPicture
from qil_jax.export.png import encoded
from qil_jax.layers.compositing import composite_8bit
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.pictures import LARGEST_SIDE
from qil_jax.layers.profiles import SRGB

MIMETYPE = "image/openraster"
THUMBNAIL = 256
"""Longest side of the thumbnail in pixels, as the format has it."""
NORMAL = "svg:src-over"
"""The one blend mode that alpha blending knows."""
Number = TypeVar("Number", int, float)


def write_ora(stack: LayeredImage | LayerTree, file: Path) -> None:
    """Write layers with their names in boxes that hold all that is not zero, their composite, and a thumbnail.

    Groups become nested stacks. Every byte of layers in sRGB is kept, colour under alpha 0 included; those with another
    profile are converted.

    Raises:
      FileExistsError: if the file exists.
    """
    tree = LayerTree.of(stack).with_profile(SRGB)
    nodes = nodes_of(tree, has_hidden_colour=True)
    with ThreadPoolExecutor(1) as beside:
        previews = beside.submit(_previews, nodes, tree.layered.size)
        layers = encoded([layer.pixels for layer in leaves(nodes)])
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

    Opacity goes into alpha; hidden layers are left out, whatever they are.

    Raises:
      QilError: if the file is none, needs more than alpha blending, or holds more than `bounds` allows; the message
        names the layer and the feature.
    """
    try:
        with members(file) as member:
            image = _parsed(member("stack.xml"))
            size = _number(image, "w", 0), _number(image, "h", 0)
            if not 0 < min(size) <= max(size) <= LARGEST_SIDE:
                raise QilError(f"a canvas of {size[0]}x{size[1]} pixels; sides of 1 to {LARGEST_SIDE} are read")
            if [element.tag for element in image] != ["stack"]:
                raise QilError(f"its image holds {', '.join(_said(x) for x in image) or 'nothing'}: it needs one stack")
            _opacity(image[0])
            return tree_of(_nodes(image[0], member), size)
    except QilError as error:
        raise QilError(f"{file}: {error}") from error
    except Exception as error:  # the unpacker raises arbitrary exceptions on malformed bytes
        raise QilError(f"{file}: cannot be read as OpenRaster ({error}); save it again") from error


def _previews(nodes: tuple[Node, ...], size: tuple[int, int]) -> list[bytes]:
    """The composite and its thumbnail as PNGs, which are written for speed: programs show them until they have more."""
    composite = composite_8bit(leaves(nodes), size)
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
            where = {"src": next(sources), "x": str(node.left), "y": str(node.top)}
            element = ElementTree.Element("layer", {"name": name, **where, **shown})
        parent.insert(0, element)


def _parsed(data: bytes) -> ElementTree.Element:
    """The XML of a file that may be hostile: one that declares entities, which could grow without bound, is refused."""
    if b"<!" in data.replace(b"<!--", b""):
        raise QilError("its stack.xml declares a document type, which OpenRaster does not know")
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise QilError(f"its stack.xml is no XML ({error})") from error


def _nodes(stack: ElementTree.Element, member: ReadFile, depth: int = 0) -> tuple[ReadNode, ...]:
    """What is shown of the elements of a stack, bottom to top."""
    require_depth(depth)
    found: list[ReadNode] = []
    for number, element in enumerate(reversed(stack), start=1):
        if element.get("visibility", "visible") == "hidden":
            continue
        name, opacity = element.get("name", f"Layer {number}"), _opacity(element)
        if element.tag == "stack":
            found.append(GroupNode(name=name, nodes=_nodes(element, member, depth + 1)))
        else:
            left, top, data = _number(element, "x", 0), _number(element, "y", 0), member(element.attrib["src"])
            found.append(PlacedPicture(name=name, data=data, left=left, top=top, opacity=opacity))
    return tuple(found)


def _opacity(element: ElementTree.Element) -> float:
    """The opacity, in [0, 1], of an element that alpha blending can show; 1 of every stack.

    Raises:
      QilError: naming the element and what of it alpha blending cannot show.
    """
    said, fix = _said(element), "in the program that made it"
    if element.tag not in ("layer", "stack"):
        raise QilError(f"{said} is no layer of pixels: turn it into one {fix}")
    if element.tag == "layer" and len(element):
        raise QilError(f"{said} has more than pixels, {_said(element[0])}: merge it {fix}")
    mode = element.get("composite-op", NORMAL)
    if mode != NORMAL:
        raise QilError(f"{said} has the blend mode {mode}: merge it {fix}")
    opacity = _number(element, "opacity", 1.0)
    if not 0 <= opacity <= 1:
        raise QilError(f"{said} has the opacity {opacity}, OpenRaster knows 0 to 1: set it {fix}")
    if element.tag == "stack" and opacity != 1:
        raise QilError(f"{said} has an opacity: give it to its layers {fix}")
    if element.tag == "stack" and (_number(element, "x", 0) or _number(element, "y", 0)):
        raise QilError(f"{said} has an offset, which programs read differently: move its layers {fix}")
    return opacity


def _number(element: ElementTree.Element, key: str, default: Number) -> Number:
    """An attribute as a number of the default's type.

    Raises:
      QilError: if it is none.
    """
    text = element.get(key, str(default))
    try:
        return type(default)(text)
    except ValueError as error:
        raise QilError(f"{_said(element)} has the {key} {text[:40]!r}, which is no number") from error


def _said(element: ElementTree.Element) -> str:
    """What messages call an element."""
    kind = "group" if element.tag == "stack" else element.tag
    return f"{kind} '{element.attrib['name']}'" if "name" in element.attrib else kind
