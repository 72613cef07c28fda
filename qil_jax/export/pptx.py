"""Layered images as PowerPoint presentations: a slide in the canvas's shape, a picture for each layer."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pptx import Presentation
from pptx.enum.shapes import MSO_SHAPE_TYPE
from pptx.util import Emu

from qil_jax.errors import QilError
from qil_jax.export.names import plain_text
from qil_jax.export.native_text import TextLayer, add_text, texts_of
from qil_jax.export.nodes import GroupNode, Node, boxed_layers, nodes_of, tree_of
from qil_jax.export.png import encoded
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.pictures import decoded

PIXEL = 9525
"""Length of a pixel in EMU at 96 pixels an inch, which is 914,400 EMU."""
SMALLEST_SIDE, LARGEST_SIDE = 914_400, 51_206_400
"""Limits of a slide's sides in EMU: 1 and 56 inches."""
BLANK = 6
"""Index of the layout without placeholders in python-pptx's own template."""


def write_pptx(stack: LayeredImage | LayerTree, file: Path, *, native_text: bool = False) -> None:
    """Write one slide with a picture for each layer at its place, in tight boxes; groups become groups.

    With native text, layers that are text become text boxes (`export.native_text`), and a second, hidden slide keeps
    the pictures of all layers.

    Raises:
      QilError: if the canvas has a shape that no slide can have, or text cannot be recognised here.
      FileExistsError: if the file exists.
    """
    tree = LayerTree.of(stack)
    nodes = nodes_of(tree)
    scale = pixel_length(tree.layered.size, str(file))
    presentation = Presentation()
    presentation.slide_width, presentation.slide_height = (Emu(side * scale) for side in tree.layered.size)
    layers = boxed_layers(nodes)
    pictures = dict(zip(map(id, layers), encoded([layer.pixels for layer in layers]), strict=True))
    texts = texts_of(layers) if native_text else {}
    for is_shown in (True, False) if native_text else (True,):
        slide = presentation.slides.add_slide(presentation.slide_layouts[BLANK])
        slide._element.set("show", str(int(is_shown)))
        _add(slide.shapes, nodes, pictures, scale, texts if is_shown else {})
    properties = presentation.core_properties
    properties.author, properties.title = "", plain_text(tree.layered.caption)[:255]
    with file.open("xb") as stream:
        presentation.save(stream)


def read_pptx(file: Path) -> LayerTree:
    """The layers on a presentation's first hidden slide, or else on its first: its pictures and groups of pictures.

    Pictures may have been moved; they must have the size at which they were written.

    Raises:
      QilError: if the file is no presentation, or has no pictures, or pictures that were resized, cropped or turned.
    """
    try:
        presentation = Presentation(str(file))
        slides = list(presentation.slides)
        slide = next((s for s in slides if s._element.get("show") == "0"), slides[0])
        sizes = [((p.width, p.height), p.image.size) for p in _pictures(slide.shapes)]
        lengths = {round(length / pixels) for pair in sizes for length, pixels in zip(*pair, strict=True)}
        if len(lengths) != 1:
            raise QilError("no pictures on it" if not lengths else "its pictures were resized; export anew")
        scale = lengths.pop()
        size = round(presentation.slide_width / scale), round(presentation.slide_height / scale)
        return tree_of(_nodes(slide.shapes, scale), size, presentation.core_properties.title)
    except QilError as error:
        raise QilError(f"{file}: {error}") from error
    except Exception as error:  # the library raises arbitrary exceptions on malformed bytes
        raise QilError(f"{file}: cannot be read as a presentation ({error!r}); save it again") from error


def pixel_length(size: tuple[int, int], name: str = "the canvas") -> int:
    """Length of a pixel in EMU on a slide of `size` pixels, width and height: as at 96 pixels an inch where that fits.

    Raises:
      QilError: if a slide cannot have this shape.
    """
    longest, shortest = max(size), min(size)
    scale = min(max(PIXEL, -(-SMALLEST_SIDE // shortest)), LARGEST_SIDE // longest)
    if scale * shortest < SMALLEST_SIDE:
        raise QilError(f"{name}: {size[0]}x{size[1]} pixels do not fit a slide, whose sides are at most 56 to 1")
    return scale


def _add(
    shapes: Any, nodes: Sequence[Node], pictures: dict[int, bytes], scale: int, texts: Mapping[int, TextLayer]
) -> None:
    """Add layers and groups to the shapes of a slide or of a group."""
    for node in nodes:
        if isinstance(node, GroupNode):
            shape = shapes.add_group_shape()
            _add(shape.shapes, node.nodes, pictures, scale, texts)
        elif id(node) in texts:
            add_text(shapes, texts[id(node)], scale, plain_text(node.name))
            continue
        else:
            height, width = node.pixels.shape[:2]
            box = (Emu(scale * pixels) for pixels in (node.left, node.top, width, height))
            shape = shapes.add_picture(io.BytesIO(pictures[id(node)]), *box)
        shape.name = plain_text(node.name)


def _pictures(shapes: Any) -> Iterator[Any]:
    for shape in shapes:
        if shape.shape_type == MSO_SHAPE_TYPE.GROUP:
            yield from _pictures(shape.shapes)
        elif shape.shape_type == MSO_SHAPE_TYPE.PICTURE:
            yield shape


def _nodes(shapes: Any, scale: int) -> tuple[Node, ...]:
    found: list[Node] = []
    for shape in shapes:
        if shape.shape_type == MSO_SHAPE_TYPE.GROUP:
            found.append(GroupNode(name=shape.name, nodes=_nodes(shape.shapes, scale)))
        elif shape.shape_type == MSO_SHAPE_TYPE.PICTURE:
            if shape.rotation or any((shape.crop_left, shape.crop_top, shape.crop_right, shape.crop_bottom)):
                raise QilError(f"picture '{shape.name}' was turned or cropped; export anew")
            pixels = np.asarray(decoded(shape.image.blob, shape.name))
            place = {"left": round(shape.left / scale), "top": round(shape.top / scale)}
            found.append(BoxedLayer(pixels=pixels, name=shape.name, **place))
    return tuple(found)
