"""Layers that are text as text: words by an OCR engine, with the size, colour and font that show them most alike.

The engine is rapidocr with its own models, the extra `[ocr]`. It needs no network.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageFont
from pptx.dml.color import RGBColor
from pptx.enum.text import MSO_AUTO_SIZE
from pptx.util import Emu, Pt

from qil_jax.errors import QilError
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import over_colour

SMALLEST_SCORE = 0.5
"""The engine's confidence, in [0, 1], below which what it read is no word."""
INSIDE = 0.9
"""Share of a layer's alpha that must lie in lines of text for the layer to be text."""
ALIKE = 0.4
"""Intersection over union of a line and of its words in the nearest font that shows that they were read rightly."""
SOLID = 0.9
"""Share of opaque pixels in its box above which a layer is no text, but perhaps something with text on it."""
READ_AT = 64
"""Height in pixels that layers are enlarged to, by a whole factor, before they are read."""
MARGIN = 0.25
"""Margin around a layer that is read, as a share of its height."""
MOST_FONTS = 400
TRIED_AT = 48
"""Height in pixels at which fonts are compared."""
STYLES = {"Regular", "Book", "Roman", "Medium", "Bold", "Italic", "Oblique", "Bold Italic", "Bold Oblique"}
SPACE_LOST = re.compile(r"(?<=[.,:;!?])(?=\w)")
OTHER_FAMILY = "Arial"
"""The family where the machine has no fonts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextLine:
    """A line of text on the canvas.

    Attributes:
      words: its characters.
      left: x coordinate of the pen's first position, in pixels.
      top: y coordinate of the line's top, an ascent above the baseline, in pixels.
      width: length of the line in pixels.
      size: size of the font in pixels.
      family: name of the font.
      is_bold: whether its letters are bold.
      is_italic: whether they are slanted.
      colour: red, green and blue of the letters' inner pixels, 0 to 255.
      opacity: alpha of these pixels in [0, 1].
    """

    words: str
    left: float
    top: float
    width: float
    size: float
    family: str
    is_bold: bool
    is_italic: bool
    colour: tuple[int, int, int]
    opacity: float


TextLayer = tuple[TextLine, ...]
"""The lines of a layer, top to bottom."""


def texts_of(layers: Sequence[BoxedLayer]) -> Mapping[int, TextLayer]:
    """The lines of the layers that are text and nothing else, by the layer's `id`.

    Raises:
      QilError: if the engine is not installed.
    """
    read = _engine()
    return {id(layer): lines for layer in layers if (lines := _lines(layer, read))}


def add_text(shapes: Any, lines: TextLayer, scale: int) -> Any:
    """Add a text box for each line to the shapes of a slide or group, in a group of their own if there are several.

    Args:
      scale: length of a pixel in EMU.

    Returns:
      The shape that was added.
    """
    if len(lines) > 1:
        group = shapes.add_group_shape()
        for line in lines:
            _add_line(group.shapes, line, scale).name = line.words
        return group
    (line,) = lines
    return _add_line(shapes, line, scale)


def _add_line(shapes: Any, line: TextLine, scale: int) -> Any:
    box = (line.left, line.top, line.width, line.size * 1.2)
    shape = shapes.add_textbox(*(Emu(round(scale * value)) for value in box))
    frame = shape.text_frame
    frame.margin_left = frame.margin_right = frame.margin_top = frame.margin_bottom = Emu(0)
    frame.word_wrap, frame.auto_size = False, MSO_AUTO_SIZE.NONE
    run = frame.paragraphs[0].add_run()
    run.text = line.words
    run.font.size = Pt(max(1, round(line.size * scale / Pt(1), 1)))
    run.font.name, run.font.bold, run.font.italic = line.family, line.is_bold, line.is_italic
    run.font.color.rgb = RGBColor(*line.colour)
    if line.opacity < 1:
        colour = run.font.color._color._xClr
        alpha = colour.makeelement("{http://schemas.openxmlformats.org/drawingml/2006/main}alpha", {})
        alpha.set("val", str(round(line.opacity * 100_000)))
        colour.append(alpha)
    return shape


@functools.cache
def _engine() -> Any:
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise QilError("native text needs an OCR engine: pip install 'qil_jax[ocr]'") from error
    return RapidOCR(params={"Global.log_level": "critical", "Global.use_cls": False})


def _lines(layer: BoxedLayer, read: Any) -> TextLayer:
    """The lines of a layer; none if it is not text, or not only text."""
    alpha = layer.pixels[..., 3]
    if not alpha.any():
        return ()
    if (alpha >= 128).mean() > SOLID:
        return ()
    height = len(alpha)
    pad, zoom = math.ceil(MARGIN * height) + 2, math.ceil(READ_AT / height)
    picture = Image.fromarray(np.pad(_on_contrast(layer.pixels), ((pad, pad), (pad, pad), (0, 0)), "edge"))
    picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.BICUBIC)
    found = read(np.asarray(picture)[..., ::-1])  # the engine takes blue first
    if found.boxes is None:
        return ()
    lines, inside = [], 0
    for corners, words, score in zip(found.boxes, found.txts, found.scores, strict=True):
        left, top = (max(0, math.floor(x)) for x in corners.min(0) / zoom - pad - 0.05 * height)
        right, bottom = (max(0, math.ceil(x)) for x in corners.max(0) / zoom - pad + 0.05 * height)
        part = layer.pixels[top:bottom, left:right]
        inside += int(part[..., 3].sum())
        line = _line(words.strip(), part, layer.left + left, layer.top + top) if score >= SMALLEST_SCORE else None
        if line is None:
            return ()
        lines.append(line)
    return tuple(sorted(lines, key=lambda line: line.top)) if inside >= INSIDE * int(alpha.sum()) else ()


def _on_contrast(pixels: UInt8[np.ndarray, "y x 4"]) -> UInt8[np.ndarray, "y x 3"]:
    """A layer over white or black, whichever its colours are farther from."""
    weights = pixels[..., 3].astype(np.float64)
    brightness = (pixels[..., :3].mean(-1) * weights).sum() / weights.sum()
    ground = 1.0 if brightness < 128 else 0.0
    return over_colour(pixels, (ground, ground, ground))[..., :3]


def _line(words: str, part: UInt8[np.ndarray, "y x 4"], left: int, top: int) -> TextLine | None:
    """The line in a part of the canvas that begins at `left`, `top`; None if the words do not look like it."""
    shape = part[..., 3] >= 128
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    if not words or not len(rows):
        return None
    ink = shape[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    spaced = SPACE_LOST.sub(" ", words)  # the engine drops narrow spaces
    tried = ((_likeness(text, ink, font), text, font) for text in {words: 0, spaced: 0} for font in _fonts())
    alike, words, font = max(tried, key=lambda one: one[0])
    if alike < ALIKE:
        return None
    size, (x, y, _, _), ascent, length = _fitted(words, ink.shape[1], font)
    family, style = font.getname()
    colour, opacity = _colour(part)
    return TextLine(
        words=words,
        left=left + int(columns[0]) - x,
        top=top + int(rows[0]) - y - ascent,
        width=length,
        size=size,
        family=family or OTHER_FAMILY,
        is_bold="Bold" in (style or ""),
        is_italic="Italic" in (style or "") or "Oblique" in (style or ""),
        colour=colour,
        opacity=opacity,
    )


def _fitted(words: str, width: int, font: Any) -> tuple[float, tuple[float, float, float, float], float, float]:
    """Size at which the words' ink has a width in pixels, its box from the baseline, the ascent, and the pen's way."""
    left, top, right, bottom = font.getbbox(words, anchor="ls")
    factor = width / max(1, right - left)
    box = (left * factor, top * factor, right * factor, bottom * factor)
    return font.size * factor, box, font.getmetrics()[0] * factor, font.getlength(words) * factor


def _likeness(words: str, ink: Bool[np.ndarray, "y x"], font: Any) -> float:
    """Intersection over union of a line's ink and of the words in a font at the size that is as wide."""
    height, width = ink.shape
    mask = font.getmask(words)
    if 0 in mask.size:
        return 0.0
    drawn = Image.frombytes("L", mask.size, bytes(mask))
    box = drawn.getbbox()
    if box is None:
        return 0.0
    drawn = drawn.crop(box)
    high = max(1, round(drawn.height * width / drawn.width))
    theirs = np.asarray(drawn.resize((width, high), Image.Resampling.BILINEAR)) >= 128
    rows = max(high, height)
    ours = np.pad(ink, (((rows - height) // 2, rows - height - (rows - height) // 2), (0, 0)))
    theirs = np.pad(theirs, (((rows - high) // 2, rows - high - (rows - high) // 2), (0, 0)))
    return float((ours & theirs).sum() / max(1, (ours | theirs).sum()))


@functools.cache
def _fonts() -> tuple[Any, ...]:
    """The machine's fonts in the styles that presentations know, at one size; Pillow's own font if there are none."""
    from matplotlib.font_manager import findSystemFonts

    found = {}
    for file in sorted(findSystemFonts()):
        try:
            font = ImageFont.truetype(file, TRIED_AT)
        except OSError:
            continue
        if font.getname()[1] in STYLES:
            found.setdefault(font.getname(), font)
    return tuple(found.values())[:MOST_FONTS] or (ImageFont.load_default(TRIED_AT),)


def _colour(part: UInt8[np.ndarray, "y x 4"]) -> tuple[tuple[int, int, int], float]:
    """Colour and alpha of the innermost pixels of letters, which no outline has and no edge softens."""
    import cv2

    alpha: Float[np.ndarray, "y x"] = part[..., 3].astype(np.float32)
    depth = cv2.distanceTransform((alpha >= 128).astype(np.uint8), cv2.DIST_L2, 3)
    inner = part[depth >= 0.7 * depth.max()]
    red, green, blue, opacity = (int(x) for x in np.median(inner, axis=0))
    return (red, green, blue), opacity / 255
