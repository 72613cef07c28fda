"""Layers that are text as text: words by an OCR engine, with the size, colour and font that show them most alike.

The engine is rapidocr with its own models, the extra `[ocr]`. It needs no network.
"""

import dataclasses
import functools
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter, ImageFont
from pptx.dml.color import RGBColor
from pptx.enum.text import MSO_AUTO_SIZE
from pptx.oxml import parse_xml
from pptx.oxml.ns import nsdecls, qn
from pptx.util import Emu, Pt

from qil_jax.export.letters import Letters, Shadow, letters_of, solid_pixels
from qil_jax.export.png import encoded
from qil_jax.extras import require
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import over_colour

SMALLEST_SCORE = 0.5
"""The engine's confidence, in [0, 1], below which what it read is no word."""
INSIDE = 0.9
"""Share of a layer's solid pixels that must lie in lines of text for the layer to be text."""
ALIKE = 0.6
"""Likeness of a line and of its words in the nearest font, in [0, 1], that shows that they were read rightly."""
ABOVE = 0.8
"""Share of a line that lies above the baseline, whatever the font, where lines are as high as the font's size."""
BLUR = 0.08
"""Standard deviation, as a share of the line's height, of the blur with which shapes are compared."""
FULL = 0.9
"""Share of solid pixels in its box above which a layer is no text, but perhaps something with text on it."""
READ_AT = 64
"""Height in pixels that layers are enlarged to, by a whole factor, before they are read."""
MARGIN = 0.25
"""Margin around a layer that is read, as a share of its height."""
MOST_FONTS = 400
TRIED_AT = 64
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
      baseline: y coordinate of its baseline, in pixels.
      width: length of the line in pixels.
      size: size of the font in pixels.
      family: name of the font.
      is_bold: whether its letters are bold.
      is_italic: whether they are slanted.
      letters: how they are drawn.
      corner: left and top of the pixels of `letters`.
    """

    words: str
    left: float
    baseline: float
    width: float
    size: float
    family: str
    is_bold: bool
    is_italic: bool
    letters: Letters
    corner: tuple[int, int]


TextLayer = tuple[TextLine, ...]
"""The lines of a layer, top to bottom."""


def texts_of(layers: Sequence[BoxedLayer]) -> Mapping[int, TextLayer]:
    """The lines of the layers that are text and nothing else, by the layer's `id`.

    Raises:
      QilError: if the engine is not installed.
    """
    read = _engine()
    return {id(layer): lines for layer in layers if (lines := _lines(layer, read))}


def add_text(shapes: Any, lines: TextLayer, scale: int, name: str) -> None:
    """Add a text box of this name for each line to the shapes of a slide or group.

    An outline lies below as a picture, since few programs draw outlines of text.

    Args:
      scale: length of a pixel in EMU.
    """
    for line in lines:
        if line.letters.outline is not None:
            (data,) = encoded([line.letters.outline])
            height, width = line.letters.outline.shape[:2]
            box = (*line.corner, width, height)
            shapes.add_picture(io.BytesIO(data), *(Emu(scale * x) for x in box)).name = f"{name}, outline"
        _add_line(shapes, line, scale).name = name


def _add_line(shapes: Any, line: TextLine, scale: int) -> Any:
    box = (line.left, line.baseline - ABOVE * line.size, line.width, line.size)
    shape = shapes.add_textbox(*(Emu(round(scale * value)) for value in box))
    frame = shape.text_frame
    frame.margin_left = frame.margin_right = frame.margin_top = frame.margin_bottom = Emu(0)
    frame.word_wrap, frame.auto_size = False, MSO_AUTO_SIZE.NONE
    run = frame.paragraphs[0].add_run()
    run.text = line.words
    frame.paragraphs[0].line_spacing = run.font.size = Pt(max(1, round(line.size * scale / Pt(1), 1)))
    run.font.name, run.font.bold, run.font.italic = line.family, line.is_bold, line.is_italic
    run.font.color.rgb = RGBColor(*line.letters.colour)
    properties, letters = run._r.get_or_add_rPr(), line.letters
    if letters.opacity < 1:
        properties.find(qn("a:solidFill"))[0].append(_xml(f'<a:alpha {{}} val="{round(letters.opacity * 1e5)}"/>'))
    if letters.shadow is not None:
        shape._element.spPr.append(_shadow_xml(letters.shadow, scale))
    return shape


def _shadow_xml(shadow: Shadow, scale: int) -> Any:
    """A shape's shadow, which its text casts where the shape has no fill."""
    away, angle = math.hypot(shadow.right, shadow.down), math.degrees(math.atan2(shadow.down, shadow.right)) % 360
    place = f'blurRad="{round(2 * shadow.blur * scale)}" dist="{round(away * scale)}" dir="{round(angle * 60_000)}"'
    alpha = f'<a:alpha val="{round(shadow.opacity * 1e5)}"/>'
    colour = f'<a:srgbClr val="{RGBColor(*shadow.colour)}">{alpha}</a:srgbClr>'
    return _xml(f'<a:effectLst {{}}><a:outerShdw {place} rotWithShape="0">{colour}</a:outerShdw></a:effectLst>')


def _xml(text: str) -> Any:
    """An element of DrawingML, whose text has a place for the declaration of its namespace."""
    return parse_xml(text.format(nsdecls("a")))


@functools.cache
def _engine() -> Any:
    require("native text", "rapidocr", "onnxruntime", "matplotlib")
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "critical", "Global.use_cls": False})


def _lines(layer: BoxedLayer, read: Any) -> TextLayer:
    """The lines of a layer; none if it is not text, or not only text."""
    solid = solid_pixels(layer.pixels)
    if not solid.any() or solid.mean() > FULL:
        return ()
    height = len(solid)
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
        inside += int(solid[top:bottom, left:right].sum())
        line = _line(words.strip(), part, layer.left + left, layer.top + top) if score >= SMALLEST_SCORE else None
        if line is None:
            return ()
        lines.append(line)
    return tuple(sorted(lines, key=lambda line: line.baseline)) if inside >= INSIDE * int(solid.sum()) else ()


def _on_contrast(pixels: UInt8[np.ndarray, "y x 4"]) -> UInt8[np.ndarray, "y x 3"]:
    """A layer over white or black, whichever its colours are farther from."""
    weights = pixels[..., 3].astype(np.float64)
    brightness = (pixels[..., :3].mean(-1) * weights).sum() / weights.sum()
    ground = 1.0 if brightness < 128 else 0.0
    return over_colour(pixels, (ground, ground, ground))[..., :3]


def _line(words: str, part: UInt8[np.ndarray, "y x 4"], left: int, top: int) -> TextLine | None:
    """The line in a part of the canvas that begins at `left`, `top`; None if the words do not look like it."""
    letters = letters_of(part)
    shape = letters.shape
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    if not any(map(str.isalnum, words)) or not len(rows):
        return None
    ink = letters.coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    spaced = SPACE_LOST.sub(" ", words)  # the engine drops narrow spaces
    tried = ((text, font, _drawn(text, font)) for text in dict.fromkeys((words, spaced)) for font in _fonts())
    alike, words, font, drawn = max(
        ((_likeness(ink, found[0]), text, font, found) for text, font, found in tried), key=lambda one: one[0]
    )
    if alike < ALIKE:
        return None
    picture, right, down = drawn
    factor = ink.shape[1] / picture.width
    family, style = font.getname()
    return TextLine(
        words=words,
        left=left + int(columns[0]) - right * factor,
        baseline=top + int(rows[0]) - down * factor,
        width=font.getlength(words) * factor,
        size=font.size * factor,
        family=family or OTHER_FAMILY,
        is_bold="Bold" in (style or ""),
        is_italic="Italic" in (style or "") or "Oblique" in (style or ""),
        letters=letters,
        corner=(left, top),
    )


def _drawn(words: str, font: Any) -> tuple[Image.Image, int, int]:
    """The ink of words in a font, and where it begins: right of the pen's first position, and below the baseline."""
    mask, (right, down) = font.getmask2(words, anchor="ls")
    picture = Image.frombytes("L", mask.size, bytes(mask))
    box = picture.getbbox() or (0, 0, 0, 0)
    return picture.crop(box), right + box[0], down + box[1]


def _likeness(ink: Float[np.ndarray, "y x"], drawn: Image.Image) -> float:
    """How alike a line's ink and drawn words of the same width are, in [0, 1]; a little beside costs a little."""
    height, width = ink.shape
    if 0 in drawn.size:
        return 0.0
    high = max(1, round(drawn.height * width / drawn.width))
    rows = 2 * max(high, height)
    pictures = (
        Image.fromarray(np.rint(ink * 255).astype(np.uint8)),
        drawn.resize((width, high), Image.Resampling.BILINEAR),
    )
    ours, theirs = (Image.new("L", (width + height, rows)) for _ in pictures)
    for canvas, picture in zip((ours, theirs), pictures, strict=True):
        canvas.paste(picture, (height // 2, (rows - picture.height) // 2))
    blur = ImageFilter.GaussianBlur(BLUR * height)
    first, second = (np.asarray(canvas.filter(blur), np.float64) for canvas in (ours, theirs))
    weights = sorted((first.sum(), second.sum()))  # of the strokes
    return float((1 - np.abs(first - second).sum() / max(1.0, sum(weights))) * weights[0] / max(1.0, weights[1]))


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
