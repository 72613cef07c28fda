"""The report of a build: counts and the outcome of every document, as JSON and as an HTML page with images."""

import base64
import html
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from qil_jax.documents.prepare import THUMBNAIL, load_record
from qil_jax.documents.rows import ReportRow
from qil_jax.layers.compositing import composite_8bit
from qil_jax.layers.sheets import png_bytes

PICTURES = 24
"""Number of kept and of dropped documents that are shown, spread evenly over all."""
PICTURES_COMPARED = ("dB, psd-tools", "dB, stored", "dB, thumbnail")

STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; max-width: 1200px }
table { border-collapse: collapse } td, th { padding: .2em .8em; text-align: left; vertical-align: top }
tr:nth-child(even) { background: #f4f4f4 } figure { display: inline-block; margin: 6px; vertical-align: top }
img { background: repeating-conic-gradient(#ddd 0 25%, #fff 0 50%) 0 / 16px 16px; max-width: 160px }
figcaption { max-width: 160px; font-size: 11px; overflow-wrap: anywhere } rect { fill: #36c }
"""


def summary(rows: Sequence[ReportRow]) -> dict[str, Any]:
    """The content of report.json: numbers of documents, kept and (by reason) dropped, and all rows."""
    dropped = Counter(str(row.reason) for row in rows if row.reason is not None)
    return {
        "documents": len(rows),
        "kept": sum(row.reason is None for row in rows),
        "dropped": dict(sorted(dropped.items())),
        "rows": [row.to_json() for row in rows],
    }


def write_report(rows: Sequence[ReportRow], done: epath.Path, out: epath.Path) -> dict[str, Any]:
    """Write `report.json` and `report.html` into `out`, with images from the folder `done`, and return the summary."""
    counted = summary(rows)
    (out / "report.json").write_text(json.dumps(counted, indent=1) + "\n")
    kept = [row for row in rows if row.reason is None]
    gone = [row for row in rows if row.reason is not None]
    counts = [("documents", len(rows)), ("kept", len(kept)), *counted["dropped"].items()]
    categories = Counter(row.category for row in kept if row.category)
    sections = [
        "<h1>Documents to layers</h1>",
        _table(["", "documents"], counts),
        "<h2>Layers per kept document</h2>",
        _histogram("before merging", [row.layers_before for row in kept]),
        _histogram("after merging", [row.layers_after for row in kept]),
        "<h2>Longer side in pixels</h2>",
        _histogram("", [max(row.size) // 256 * 256 for row in kept]),
        "<h2>dB against the stored picture, from</h2>",
        *(_histogram(name, _decibels(some)) for name, some in (("kept", kept), ("dropped", gone))),
        *([_table(["category", "documents"], categories.most_common())] if categories else []),
        "<h2>Kept</h2>",
        *(_sample(row, done) for row in _spread(kept)),
        "<h2>Dropped</h2>",
        *(_reject(row, done) for row in _spread(gone)),
        "<h2>Every document</h2>",
        _table(["document", "outcome", "layers", *PICTURES_COMPARED, "notes"], [_cells(row) for row in rows]),
    ]
    page = f"<!doctype html><meta charset=utf-8><title>Documents to layers</title><style>{STYLE}</style>"
    (out / "report.html").write_text(page + "\n".join(sections))
    return counted


def _cells(row: ReportRow) -> list[Any]:
    outcome = "kept" if row.reason is None else f"{row.reason}: {row.detail}"
    layers = f"{row.layers_before} to {row.layers_after}" if row.layers_before else ""
    found = (row.psnr_compositor, row.psnr_stored, row.psnr_thumbnail)
    figures = ["" if x is None else f"{x:.1f}" for x in found]
    return [row.document, outcome, layers, *figures, "; ".join(row.notes + row.decisions)]


def _decibels(rows: Sequence[ReportRow]) -> list[int]:
    """PSNR against the stored pictures, in steps of 5 dB."""
    return [int(row.psnr_stored // 5 * 5) for row in rows if row.psnr_stored is not None]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    return f"<table><tr>{header}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _histogram(title: str, values: Sequence[int]) -> str:
    """A bar chart of how often each value occurs, as SVG."""
    counts = sorted(Counter(values).items())
    most = max((count for _, count in counts), default=1)
    bars = []
    for i, (value, count) in enumerate(counts):
        height = 80 * count / most
        label = f"<text x={i * 34 + 15} y=98 font-size=10 text-anchor=middle>{value}</text>"
        number = f"<text x={i * 34 + 15} y={78 - height + 10:.0f} font-size=10 text-anchor=middle>{count}</text>"
        bars.append(f"<rect x={i * 34} y={88 - height:.1f} width=30 height={height:.1f} />{number}{label}")
    svg = f"<svg width={len(counts) * 34 + 4} height=102 style='overflow:visible'>{''.join(bars)}</svg>"
    return f"<figure>{svg}<figcaption>{html.escape(title)}</figcaption></figure>"


def _spread(rows: Sequence[ReportRow]) -> list[ReportRow]:
    places = np.unique(np.linspace(0, len(rows) - 1, PICTURES).astype(int)) if rows else []
    return [rows[i] for i in places]


def _sample(row: ReportRow, done: epath.Path) -> str:
    """HTML of the composite of a kept document and its layers, bottom first."""
    record = load_record(done, row.digest)
    pictures = [_png(composite_8bit(record.layers, record.size))]
    pictures += [_png(layer.pixels) for layer in record.layers]
    names = [row.document, *(layer.name for layer in record.layers)]
    return "<div>" + "".join(_figure(p, n) for p, n in zip(pictures, names, strict=True)) + "</div>"


def _reject(row: ReportRow, done: epath.Path) -> str:
    file = done / f"{row.digest}.png"
    picture = file.read_bytes() if row.digest and file.exists() else b""
    return _figure(picture, f"{row.document}: {row.reason}: {row.detail}")


def _png(pixels: np.ndarray) -> bytes:
    return png_bytes(Image.fromarray(pixels), THUMBNAIL)


def _figure(png: bytes, text: str) -> str:
    image = f"<img src='data:image/png;base64,{base64.b64encode(png).decode()}'>" if png else ""
    return f"<figure>{image}<figcaption>{html.escape(text)}</figcaption></figure>"
