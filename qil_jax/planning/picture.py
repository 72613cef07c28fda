"""A picture of the roofline's terms of several plans: a group of three bars for each."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from qil_jax.errors import QilError
from qil_jax.planning.result import Result

TERMS = {"compute": "#1f1f1f", "memory": "#2471a3", "network": "#c0392b"}
LEFT, RIGHT, BAR, GAP, TOP = 430, 90, 12, 12, 40
LENGTH = 520
MOST = 40
"""Number of plans that are drawn, the fastest ones."""


def draw(results: dict[str, Result], file: Path) -> None:
    """Write a PNG of the terms of all plans that fit.

    Raises:
      QilError: if no plan fits.
    """
    shown = {name: r.roofline for name, r in results.items() if r.fits and r.roofline is not None}
    if not shown:
        raise QilError(f"{file}: no plan fits, so there is nothing to draw: use a larger topology, or --quantize")
    shown = dict(list(shown.items())[:MOST])
    longest = max(max(line.compute, line.memory, line.network) for line in shown.values())
    high = TOP + len(shown) * (len(TERMS) * BAR + GAP) + GAP
    picture = Image.new("RGB", (LEFT + LENGTH + RIGHT, high), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for i, (term, colour) in enumerate(TERMS.items()):
        pen.text((LEFT + 110 * i, 12), term, fill=colour, font=font)
    pen.text((LEFT + 110 * len(TERMS), 12), "ms a step, compiled, not run", fill="#777777", font=font)
    y = TOP
    for name, line in shown.items():
        pen.text((LEFT - 10, y + BAR), name, fill="black", font=font, anchor="ra")
        for term, colour in TERMS.items():
            seconds = getattr(line, term)
            end = LEFT + LENGTH * seconds / longest
            pen.rectangle((LEFT, y, max(end, LEFT + 1), y + BAR - 3), fill=colour)
            pen.text((end + 6, y - 2), f"{1e3 * seconds:.1f}", fill=colour, font=ImageFont.load_default(10))
            y += BAR
        y += GAP
    picture.save(file)
