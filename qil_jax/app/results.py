"""What a client gets of a decomposition: files to download, the viewer, and a line of what was made."""

import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qil_jax.export.format import Format
from qil_jax.export.manifest import RECORD
from qil_jax.viewer.page import viewer_html
from qil_jax.viewer.stored import stored_entry

FORMATS = tuple(format for format in Format if format is not Format.PNG)
"""What a client may download; the ZIP holds the PNGs."""


def downloads(result: Path, formats: Iterable[Format]) -> list[Path]:
    """The files of a result, beside its folder under its name, and its record last."""
    return [_named(result, result / format.file) for format in formats] + [result / RECORD]


def _named(result: Path, file: Path) -> Path:
    link = result.with_name(f"{result.name}{file.suffix}")
    link.hardlink_to(file)
    return link


def framed_viewer(result: Path, upload: Path) -> str:
    """The viewer of a result in a frame of its own origin, from which nothing of the page can be reached.

    Args:
      result: the result's folder.
      upload: the picture that was decomposed; without it there is no comparison.
    """
    page = viewer_html([stored_entry(result, [upload] if upload.is_file() else [])])
    source = html.escape(page, quote=True)
    return f'<iframe title="Layers" class="viewer" sandbox="allow-scripts allow-downloads" srcdoc="{source}"></iframe>'


def summary(record: Mapping[str, Any]) -> str:
    """How many layers of which size were made in which time, and how well they blend to the picture."""
    count, (width, height) = len(record["layers"]), record["size"]
    seconds, psnr = sum(record["batch_seconds"].values()), record["recomposition_psnr_db"]
    blend = "exactly" if psnr is None else f"at {psnr:.1f} dB"
    layers = "1 layer" if count == 1 else f"{count} layers"
    return f"{layers} of {width} x {height} pixels in {seconds:.1f} s. They blend to the picture {blend}."
