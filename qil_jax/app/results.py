"""What a client gets of a decomposition: files to download, the viewer, and a line of what was made."""

import base64
import html
import io
import shutil
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qil_jax.export.result import RECORD
from qil_jax.export.stored import read_tree

ORIGINAL = "original.png"
"""The picture at the layers' size, in the folder that holds a result's folder."""


class Download(StrEnum):
    """The files that a client may ask for."""

    ZIP = "zip"
    PSD = "psd"


def downloads(result: Path, kinds: Sequence[Download]) -> list[Path]:
    """Write the files of a result that are asked for, beside its folder; result.json is always among them."""
    return [_written(result, kind) for kind in kinds] + [result / RECORD]


def _written(result: Path, kind: Download) -> Path:
    file = result.with_name(f"{result.name}.{kind}")
    if kind is Download.PSD:
        shutil.copyfile(result / "layers.psd", file)
    else:
        shutil.make_archive(str(result), "zip", result)
    return file


def frame(result: Path) -> str:
    """The viewer of a result in a frame of its own origin, from which nothing of the page can be reached."""
    page = html.escape(_viewer(result), quote=True)
    return f'<iframe title="Layers" class="viewer" sandbox="allow-scripts allow-downloads" srcdoc="{page}"></iframe>'


def _viewer(result: Path) -> str:
    def picture(pixels: np.ndarray) -> str:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        return f'<img src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}" alt="">'

    return "<html lang=en><title>Layers</title>" + "".join(picture(x) for x in read_tree(result).leaves().layers)


def summary(record: Mapping[str, Any]) -> str:
    """How many layers of which size were made in which time, and how well they blend to the picture."""
    layers, (width, height) = len(record["layers"]), record["size"]
    seconds = sum(record["batch_seconds"].values())
    psnr = record["recomposition_psnr_db"]
    blend = "they blend to the picture exactly" if psnr is None else f"they blend to the picture at {psnr:.1f} dB"
    return f"{layers} layers of {width} x {height} pixels in {seconds:.1f} s; {blend}."
