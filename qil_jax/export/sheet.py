"""The contact sheet of a decomposition: the input, every layer on a checkerboard, and the layers' composite."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.profiles import SRGB, converted
from qil_jax.layers.sheets import arranged

CELL = 320
"""Longest side of a picture on the sheet, in pixels. Smaller pictures are enlarged by a whole factor."""
CAPTION = 26
"""Height of the caption below a picture, in pixels."""
GAP = 12
"""Pixels between pictures."""
SQUARE = 12
"""Side of the checkerboard's squares, in pixels."""
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
BACKGROUND, INK = (250, 250, 250), (40, 40, 40)


def write_sheet(layered: LayeredImage, original: UInt8[np.ndarray, "y x 4"] | None, file: Path) -> None:
    """Write the sheet as PNG in sRGB: input, layers bottom to top, recomposition, each with its caption below.

    Args:
      layered: layers of the decomposition.
      original: the 8-bit RGBA input, of the layers' size and colour profile; None: there is none to show.
      file: path of the new PNG file.

    Raises:
      FileExistsError: if the file exists.
    """
    if original is not None:
        original = converted(original, layered.profile, SRGB)
    layered = layered.with_profile(SRGB)
    names = [f"{i}. {name}" for i, name in enumerate(layered.names, start=1)]
    first = [] if original is None else [(original, "input")]
    layers = zip(layered.layers, names, strict=True)
    pictures = [*first, *layers, (layered.composite_8bit(), "recomposition")]
    cells = [_cell(picture, caption) for picture, caption in pictures]
    columns = _columns(len(cells), *cells[0].size)
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    sheet = arranged(rows, gap=GAP, background=BACKGROUND)
    with file.open("xb") as stream:
        sheet.save(stream, "PNG")


def checkerboard(width: int, height: int) -> Image.Image:
    """Light and dark gray squares, the background of transparent pictures."""
    y, x = np.mgrid[:height, :width] // SQUARE
    return Image.fromarray(np.where((x + y) % 2, 204, 255).astype(np.uint8), "L").convert("RGBA")


def _cell(pixels: np.ndarray, caption: str) -> Image.Image:
    """A picture on a checkerboard with its caption below."""
    picture = Image.fromarray(np.ascontiguousarray(pixels), "RGBA")
    longest = max(picture.size)
    scale = CELL // longest if longest <= CELL else CELL / longest
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.NEAREST if longest <= CELL else Image.Resampling.LANCZOS)
    cell = Image.new("RGB", (size[0], size[1] + CAPTION), BACKGROUND)
    cell.paste(Image.alpha_composite(checkerboard(*size), picture).convert("RGB"), (0, 0))
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(size=15)
    draw.text((0, size[1] + 4), _fitted(caption, size[0], draw, font), fill=INK, font=font)
    return cell


def _columns(count: int, width: int, height: int) -> int:
    """The number of columns that makes the sheet's aspect ratio nearest to 3:2."""
    shapes = {n: (n * width) / (-(-count // n) * height) for n in range(1, count + 1)}
    return min(shapes, key=lambda n: abs(np.log(shapes[n] / 1.5)))


def _fitted(text: str, width: int, draw: ImageDraw.ImageDraw, font: Font) -> str:
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text.removesuffix("…")[:-1] + "…"
    return text
