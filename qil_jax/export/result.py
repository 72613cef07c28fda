"""One finished decomposition as a folder: layer PNGs, a PSD, a contact sheet, and a JSON of how it was made."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qil_jax.export.png import write_pngs
from qil_jax.export.psd import write_psd
from qil_jax.export.sheet import write_sheet
from qil_jax.layered_image import LayeredImage

RECORD = "result.json"
"""The file that makes a folder a finished result."""


def write_result(
    folder: Path, layered: LayeredImage, original: np.ndarray, record: Mapping[str, Any], *, overwrite: bool = False
) -> float:
    """Write everything about one decomposition; the folder appears complete or not at all.

    Args:
      folder: where to; its parent is made if needed.
      layered: the layers.
      original: 8-bit RGBA input on the same canvas.
      record: settings and timings for the JSON; names and recomposition PSNR are added.
      overwrite: replace an existing folder.

    Returns:
      PSNR of the recomposition in dB (infinite if exact).

    Raises:
      FileExistsError: if the folder exists and is not to be replaced.
    """
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder}: exists; choose another --out, or give --overwrite to replace it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    psnr = recomposition_psnr(layered, original)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        files = write_pngs(layered, draft)
        write_psd(layered, draft / "layers.psd")
        write_sheet(layered, original, draft / "sheet.png")
        layers = [{"name": n, "file": f.name} for n, f in zip(layered.names, files, strict=True)]
        exact = math.isinf(psnr)
        quality = {"recomposition_psnr_db": None if exact else round(psnr, 4), "recomposition_exact": exact}
        text = json.dumps({**record, "size": list(layered.size), "layers": layers, **quality}, indent=2)
        (draft / RECORD).write_text(text + "\n", encoding="utf-8")
        draft.chmod(0o777 & ~_umask())
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return psnr


def read_record(folder: Path) -> dict[str, Any] | None:
    """The JSON of a finished result; None where there is none."""
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def recomposition_psnr(layered: LayeredImage, original: np.ndarray) -> float:
    """PSNR in dB of the layers' 8-bit composite against the input, both laid over white; infinite if equal."""
    ours, theirs = _over_white(layered.composite_8bit()), _over_white(original)
    error = float(np.mean(np.square(ours - theirs)))
    return math.inf if error == 0 else 10 * math.log10(1 / error)


def _over_white(pixels: np.ndarray) -> np.ndarray:
    straight = pixels.astype(np.float64) / 255
    alpha = straight[..., 3:]
    return alpha * straight[..., :3] + (1 - alpha)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
