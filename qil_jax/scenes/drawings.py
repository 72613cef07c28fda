"""Clip art as cut-outs: drawings in SVG, rendered by resvg, without what is no picture of a thing."""

import hashlib
import html
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from qil_jax.extras import require
from qil_jax.layers.visibility import visible_box
from qil_jax.scenes.assets import Kind, Stored

SIDE, LEAST_SIDE = 200, 64
"""Side length in pixels of the square into which a drawing is fitted, and of the least that it must show there."""
NO_THINGS = re.compile(
    r"/(logos|signs_and_symbols|special|geography|roadsigns|aiga-symbols|cards)/|/flat-theme/action/|folder|flag", re.I
)
"""Paths of drawings of no things: logos, signs, patterns, maps, flags, playing cards, icons of folders and actions."""
MOST_RATIO = 4.0
"""Maximum ratio of the sides of what a drawing shows."""
LEAST_COVERED, MOST_COVERED = 0.15, 0.97
"""Bounds of the share that a drawing covers of the box of what it shows: below are lines, above are panels."""


def rendered(svg: str) -> UInt8[np.ndarray, "y x 4"] | None:
    """The pixels of a drawing, straight RGBA, in the box of what it shows; None if it cannot be drawn or shows nothing.

    System fonts are not used, so the result is the same on all machines; text is drawn only where it is made of paths.

    Raises:
      QilError: if resvg-py is not installed.
    """
    require("clip art", "resvg_py")
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, dpi=96.0, skip_system_fonts=True)
    except ValueError:
        return None
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGBA"))
    box = visible_box(pixels[..., 3] > 8)
    if box is None:
        return None
    left, top, right, bottom = box
    return pixels[top:bottom, left:right]


def is_thing(pixels: UInt8[np.ndarray, "y x 4"]) -> bool:
    """Whether a drawing is neither too small, nor too narrow, nor mere lines, nor a panel that fills its box."""
    short, long = sorted(pixels.shape[:2])
    covered = float(pixels[..., 3].mean()) / 255
    return LEAST_SIDE <= long <= MOST_RATIO * short and LEAST_COVERED <= covered <= MOST_COVERED


def things(members: Mapping[str, bytes]) -> Iterator[tuple[str, str, UInt8[np.ndarray, "y x 4"]]]:
    """Path, name and pixels of the drawings of things among the members of an archive, each once, in order of paths.

    Raises:
      QilError: if resvg-py is not installed.
    """
    seen = set()
    for path in sorted(members):
        if not path.endswith(".svg") or NO_THINGS.search(path):
            continue
        svg = members[path].decode("utf-8", "replace")
        pixels = rendered(svg)
        if pixels is None or not is_thing(pixels):
            continue
        digest = hashlib.sha256(pixels.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            yield path, name_of(svg), pixels


def select_drawings(members: Mapping[str, bytes], licence: str) -> list[tuple[bytes, Stored]]:
    """The drawings of things among the members of an archive as assets in PNG, each named by its path below `svg/`.

    Raises:
      QilError: if resvg-py is not installed.
    """
    chosen = []
    for path, name, pixels in things(members):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "png")
        file = "_".join(PurePosixPath(path.split("/svg/")[-1]).with_suffix(".png").parts)
        chosen.append((stream.getvalue(), Stored(file=file, name=name, kind=Kind.OBJECT, licence=licence)))
    return chosen


def name_of(svg: str) -> str:
    """The title of a drawing in lower case, in at most four words; "drawing" if it has none in Latin letters."""
    title = re.search(r"<dc:title[^>]*>([^<]*)<|<title[^>]*>([^<]*)<", svg)
    words = re.findall(r"[a-z]+", html.unescape(html.unescape(title[1] or title[2] or "")).lower()) if title else []
    return " ".join(words[:4]) or "drawing"
