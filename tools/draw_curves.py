"""Draw the losses of runs as one picture, a panel for each.

python tools/draw_curves.py NAME=RUN/metrics.jsonl... --out FILE.svg
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from qil_jax.command_line import Parser
from qil_jax.errors import QilError
from qil_jax.programs import run_main

WIDE, HIGH, MARGIN, GAP = 300, 200, 46, 26
COLOURS = {"loss": "#1f1f1f", "loss/upper": "#c0392b", "loss/bottom": "#2471a3", "loss/composite": "#1e8449"}
"""Losses that are drawn where a run has them, and their colours."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The losses of one run.

    Attributes:
      name: title of the run's panel.
      lines: pairs (step, value) of each loss, by its name.
    """

    name: str
    lines: dict[str, list[tuple[int, float]]]

    @classmethod
    def read(cls, name: str, file: Path) -> "Curves":
        """Raises QilError if the file has no line with a loss."""
        try:
            rows = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines() if text.strip()]
        except ValueError as error:
            raise QilError(f"{file}: is not JSON line by line ({error}): give the metrics.jsonl of a run") from error
        lines = {loss: [(row["step"], row[loss]) for row in rows if row.get(loss, 0) > 0] for loss in COLOURS}
        if not lines["loss"]:
            raise QilError(f"{file}: no line with a loss: give the metrics.jsonl of a run")
        return cls(name=name, lines={loss: points for loss, points in lines.items() if len(points) > 1})


def panel(curves: Curves, left: int) -> list[str]:
    """SVG elements of one run, with its corner at (left, 0): steps on a linear axis, losses on a logarithmic one."""
    points = [point for line in curves.lines.values() for point in line]
    last = max(step for step, _ in points)
    low, high = (limit(math.log10(value) for _, value in points) for limit in (min, max))
    span = max(high - low, 1e-6)
    x = lambda step: left + MARGIN + step / last * (WIDE - MARGIN)
    y = lambda value: GAP + (high - math.log10(value)) / span * (HIGH - 2 * GAP)
    out = [f'<text x="{left + MARGIN}" y="14" font-weight="bold">{escape(curves.name)}</text>']
    for value in (10**low, 10 ** ((low + high) / 2), 10**high):
        out.append(f'<line x1="{x(0)}" x2="{x(last):.1f}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{x(0) - 4}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2g}</text>')
    for loss, line in curves.lines.items():
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in line)
        out.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[loss]}" stroke-width="1.2"/>')
    out.append(f'<text x="{x(last):.1f}" y="{HIGH - 8}" text-anchor="end">{last} steps</text>')
    return out


def drawn(runs: Sequence[Curves]) -> str:
    """The panels of all runs side by side, with the legend below, as SVG text."""
    width, height = len(runs) * (WIDE + GAP), HIGH + GAP
    elements = [element for i, run in enumerate(runs) for element in panel(run, i * (WIDE + GAP))]
    used = [loss for loss in COLOURS if any(loss in run.lines for run in runs)]
    for i, loss in enumerate(used):
        elements.append(f'<text x="{MARGIN + 110 * i}" y="{HIGH + 16}" fill="{COLOURS[loss]}">{loss}</text>')
    size = f'width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    return "\n".join([head, f'<rect {size} fill="white"/>', *elements, "</svg>", ""])


def main(argv: list[str]) -> int:
    """Draw the runs that the command line names; returns 0."""
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=FILE", help="what a panel is called, and its metrics.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="the picture, an SVG")
    arguments = parser.parse_args(argv)
    runs = [Curves.read(*_pair(run)) for run in arguments.runs]
    arguments.out.write_text(drawn(runs), encoding="utf-8")
    return 0


def _pair(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if not equals:
        raise QilError(f"'{text}': write a run as NAME=FILE")
    return name, Path(file)


if __name__ == "__main__":
    run_main(main)
