"""Layered images as PowerPoint presentations: a slide in the canvas's shape, a picture for each layer."""

import io
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pptx import Presentation
from pptx.util import Emu

from qil_jax.errors import QilError
from qil_jax.export.bounds import require_bytes
from qil_jax.export.names import plain_text
from qil_jax.export.native_text import TextLayer, add_text, texts_of
from qil_jax.export.nodes import GroupNode, Node, ReadNode, leaves, nodes_of, tree_of
from qil_jax.export.placed import PlacedPicture
from qil_jax.export.png import encoded
from qil_jax.export.slides import nodes_of_slide
from qil_jax.files import opened
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.profiles import SRGB

PIXEL = 9525
"""Length of a pixel in EMU at 96 pixels an inch, which is 914,400 EMU."""
SMALLEST_SIDE, LARGEST_SIDE = 914_400, 51_206_400
"""Limits of a slide's sides in EMU: 1 and 56 inches."""
RECORDED = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4}) pixels")
"""The canvas's width and height as a presentation's subject says them."""
SAME_SHAPE = 0.01
"""Relative difference of a pixel's sides up to which a slide has the canvas's shape: programs round a slide's sides."""
BLANK = 6
"""Index of the layout without placeholders in python-pptx's own template."""


def write_pptx(stack: LayeredImage | LayerTree, file: Path, *, native_text: bool = False) -> None:
    """Write one slide with a picture for each layer at its place, in tight boxes; groups become groups.

    With native text, layers that are text become text boxes (`export.native_text`), and a second, hidden slide keeps
    the pictures of all layers. Colours are converted to sRGB.

    Raises:
      QilError: if the canvas has a shape that no slide can have, or text cannot be recognised here.
      FileExistsError: if the file exists.
    """
    tree = LayerTree.of(stack).with_profile(SRGB)
    nodes = nodes_of(tree)
    scale = pixel_length(tree.layered.size, str(file))
    presentation = Presentation()
    presentation.slide_width, presentation.slide_height = (Emu(side * scale) for side in tree.layered.size)
    layers = leaves(nodes)
    pictures = dict(zip(map(id, layers), encoded([layer.pixels for layer in layers]), strict=True))
    texts = texts_of(layers) if native_text else {}
    for is_shown in (True, False) if native_text else (True,):
        slide = presentation.slides.add_slide(presentation.slide_layouts[BLANK])
        slide._element.set("show", str(int(is_shown)))
        _add(slide.shapes, nodes, pictures, scale, texts if is_shown else {})
    properties = presentation.core_properties
    properties.author, properties.title = "", plain_text(tree.layered.caption)[:255]
    properties.subject = "{}x{} pixels".format(*tree.layered.size)
    with file.open("xb") as stream:
        presentation.save(stream)


def read_pptx(file: Path) -> LayerTree:
    """The layers on a presentation's first hidden slide, or else on its first: its pictures and groups of pictures.

    Place, size, mirroring and opacity of pictures and groups are as the slide shows them; hidden ones are left out. The
    canvas has the size that `write_pptx` recorded, or, where it does not have the slide's shape, the resolution of the
    slide's largest picture. A picture that is shown at another resolution is resampled.

    Raises:
      QilError: if the file is no presentation, holds more than `bounds` allows, or shows something else than plain
        pictures; the message names the shape and what no layer can say of it.
    """
    try:
        with opened(file) as stream:
            with zipfile.ZipFile(stream) as archive:
                require_bytes(archive)
            presentation = Presentation(stream)
        slides = list(presentation.slides)
        slide = next((s for s in slides if s._element.get("show") == "0"), slides[0])
        shape = presentation.slide_width or 0, presentation.slide_height or 0
        properties = presentation.core_properties
        pixel = _recorded_pixel(properties.subject, shape) or _largest_pixel(nodes_of_slide(slide, 1.0))
        size = round(shape[0] / pixel), round(shape[1] / pixel)
        return tree_of(nodes_of_slide(slide, pixel), size, properties.title)
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


def _recorded_pixel(subject: str, slide: tuple[int, int]) -> float | None:
    """Length in EMU of a pixel of the canvas whose size `write_pptx` recorded; None if the slide has another shape."""
    found = RECORDED.fullmatch(subject)
    if found is None:
        return None
    across, down = (length / int(pixels) for length, pixels in zip(slide, found.groups(), strict=True))
    return across if math.isclose(across, down, rel_tol=SAME_SHAPE) else None


def _largest_pixel(nodes: Sequence[ReadNode]) -> float:
    """Length in EMU of a pixel of the picture with the most pixels, along its finer side.

    Args:
      nodes: what is shown, with lengths in EMU.
    """
    found = [node for node in leaves(nodes) if isinstance(node, PlacedPicture)]
    if not found:
        raise QilError("no pictures on it")
    largest = max(found, key=lambda picture: math.prod(picture.file_size))
    return min(length / pixels for length, pixels in zip(largest.size or (), largest.file_size, strict=True))
