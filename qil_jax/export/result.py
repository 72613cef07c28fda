"""One finished decomposition as a folder: layer PNGs, a PSD, a contact sheet, and a JSON of how it was made."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qil_jax.errors import QilError
from qil_jax.export.png import write_pngs
from qil_jax.export.psd import write_psd
from qil_jax.export.sheet import write_sheet
from qil_jax.files import whole_folder
from qil_jax.layers.compositing import blended, decibels
from qil_jax.layers.layered_image import LayeredImage

RECORD = "result.json"
"""The file that makes a folder a result: how it was made, and the sha256 of every other file of it."""
OF_DESKTOPS = (".DS_Store", "Thumbs.db", "desktop.ini")
"""Files that file managers leave in folders and that nobody misses."""


class ResultError(QilError):
    """Something stands where a result should go. The message names the folder, the reason and the fix."""


def write_result(
    folder: Path, layered: LayeredImage, original: np.ndarray, record: Mapping[str, Any], *, overwrite: bool = False
) -> float:
    """Write everything about one decomposition; the folder appears complete or not at all.

    Args:
      folder: where to; its parent is made if needed.
      layered: the layers.
      original: 8-bit RGBA input on the same canvas.
      record: settings and timings for the JSON; names, checksums and recomposition PSNR are added.
      overwrite: replace a result that is there.

    Returns:
      PSNR of the recomposition in dB (infinite if exact).

    Raises:
      FileExistsError: if the folder exists and is not to be replaced.
      ResultError: if it is to be replaced and is no result, or holds files that are not the result's.
    """
    if overwrite:
        require_replaceable(folder)
    psnr = recomposition_psnr(layered, original)
    with whole_folder(folder, overwrite=overwrite) as draft:
        files = write_pngs(layered, draft)
        write_psd(layered, draft / "layers.psd")
        write_sheet(layered, original, draft / "sheet.png")
        layers = [{"name": n, "file": f.name} for n, f in zip(layered.names, files, strict=True)]
        exact = math.isinf(psnr)
        facts = {
            "size": list(layered.size),
            "layers": layers,
            "recomposition_psnr_db": None if exact else round(psnr, 4),
            "recomposition_exact": exact,
            "files": {file.name: _sha256(file) for file in sorted(draft.iterdir())},
        }
        (draft / RECORD).write_text(json.dumps({**record, **facts}, indent=2) + "\n", encoding="utf-8")
    return psnr


def read_record(folder: Path) -> dict[str, Any] | None:
    """The JSON of a result; None where there is none that can be read."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("files"), dict) else None


def read_result(folder: Path) -> dict[str, Any] | None:
    """The record of a result, every file of which is as it was written; None where there is nothing.

    Raises:
      ResultError: if something else is there, or a file of the result is missing or altered.
    """
    record = _result_at(folder)
    for name, sha256 in {} if record is None else record["files"].items():
        file = folder / name
        if not file.is_file():
            raise ResultError(f"{folder}: {name} is missing; give --overwrite to make the result again, or move it")
        if _sha256(file) != sha256:
            raise ResultError(f"{folder}: {name} was altered; give --overwrite to make the result again, or move it")
    return record


def require_replaceable(folder: Path) -> None:
    """Make sure that replacing a folder loses nothing but a result.

    Raises:
      ResultError: if there is anything else at its place or in it.
    """
    record = _result_at(folder)
    if record is None:
        return
    own = {RECORD, *record["files"], *OF_DESKTOPS}
    others = sorted(path.name for path in folder.iterdir() if path.name not in own or path.is_dir())
    if others:
        raise ResultError(f"{folder}: also holds {', '.join(others[:5])}, which would be lost; move it elsewhere")


def recomposition_psnr(layered: LayeredImage, original: np.ndarray) -> float:
    """PSNR in dB of the layers' 8-bit composite against the input, both blended over white; infinite if equal."""
    ours, theirs = (blended(x, (255, 255, 255), np.float64) for x in (layered.composite_8bit(), original))
    return decibels(float(np.mean(np.square((ours - theirs) / 255))))


def _result_at(folder: Path) -> dict[str, Any] | None:
    if not os.path.lexists(folder):
        return None
    what = "is a link" if folder.is_symlink() else "is a file" if not folder.is_dir() else None
    record = None if what else read_record(folder)
    if record is None:
        raise ResultError(f"{folder}: {what or 'is no result'} and is left alone; move it, or give another --out")
    return record


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
