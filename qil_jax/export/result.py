"""The folder of one decomposition: layer PNGs, a PSD, a contact sheet, and a JSON of settings and checksums."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from qil_jax.errors import QilError
from qil_jax.export.format import Format
from qil_jax.export.formats import write_draft
from qil_jax.export.manifest import RECORD, entries
from qil_jax.export.masks import masks_of, with_masks, write_masks
from qil_jax.export.png import write_pngs
from qil_jax.export.sheet import write_sheet
from qil_jax.files import whole_folder
from qil_jax.layers.compositing import blended, decibels, parts_of
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.profiles import profile_name
from qil_jax.strict_json import read_json

DESKTOP_FILES = (".DS_Store", "Thumbs.db", "desktop.ini")
"""Files that file managers leave in folders; they are lost with a result that is replaced."""


class ResultError(QilError):
    """A result's folder cannot be used; the message names the folder, the reason and the fix."""


def write_result(
    folder: Path,
    stack: LayeredImage | LayerTree,
    original: UInt8[np.ndarray, "y x 4"],
    record: Mapping[str, Any],
    *,
    exports: Sequence[Format] = (Format.PSD,),
    hidden_masks: bool = False,
    overwrite: bool = False,
) -> float:
    """Write the folder of one decomposition, which appears complete or not at all.

    Args:
      folder: the new folder; its parent is created if needed.
      stack: layers of the decomposition, groups included.
      original: the 8-bit RGBA input, of the layers' size and colour profile.
      record: settings and timings to be stored as JSON; names, checksums and recomposition PSNR are added.
      exports: formats of the files that are written beside the PNGs.
      hidden_masks: whether a mask of its hidden pixels is written beside each layer, and listed with it.
      overwrite: whether an existing result is replaced.

    Returns:
      PSNR of the recomposition in dB (infinite if exact).

    Raises:
      FileExistsError: if the folder exists and is not to be replaced.
      ResultError: if the folder is to be replaced and is no result, or holds files that are not the result's.
      QilError: if a format cannot hold the layers, or there are to be masks and a layer is a group.
    """
    if overwrite:
        require_replaceable(folder)
    tree = LayerTree.of(stack)
    leaves = tree.leaves()
    psnr = recomposition_psnr(leaves, original)
    with whole_folder(folder, overwrite=overwrite) as draft:
        write_pngs(tree, draft)
        masks = masks_of(tree) if hidden_masks else []
        write_masks(masks, draft)
        for format in dict.fromkeys(exports):
            if format is not Format.PNG:
                write_draft(tree, draft / format.file, format, hidden_masks=hidden_masks)
        write_sheet(leaves, original, draft / "sheet.png")
        exact = math.isinf(psnr)
        fields = {
            "size": list(leaves.size),
            "profile": profile_name(leaves.profile),
            "layers": with_masks(entries(tree), masks),
            "recomposition_psnr_db": None if exact else round(psnr, 4),
            "recomposition_exact": exact,
            "files": checksums(draft),
        }
        (draft / RECORD).write_text(json.dumps({**record, **fields}, indent=2) + "\n", encoding="utf-8")
    return psnr


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder and below it, by its relative path."""
    return {_relative(file, folder): _sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def _relative(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def read_record(folder: Path) -> dict[str, Any] | None:
    """The JSON of a result; None if it is missing or unreadable."""
    try:
        record = read_json(folder / RECORD, fix="")
    except (OSError, QilError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("files"), dict) else None


def read_result(folder: Path) -> dict[str, Any] | None:
    """The JSON of a result whose files all match their checksums; None if there is no such folder.

    Raises:
      ResultError: if the path is no result, or a file of the result is missing or altered.
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
    """Check that a folder holds nothing but a result, so that replacing it loses nothing else.

    Raises:
      ResultError: if the folder holds other files, or the path is not a folder.
    """
    record = _result_at(folder)
    if record is None:
        return
    own = {RECORD, *record["files"]}
    inner = {str(parent) for name in own for parent in PurePosixPath(name).parents}
    others = sorted(
        name
        for path in folder.rglob("*")
        if (name := _relative(path, folder)) not in (inner if path.is_dir() else own)
        and path.name not in (() if path.is_dir() else DESKTOP_FILES)
    )
    if others:
        raise ResultError(f"{folder}: also holds {', '.join(others[:5])}, which would be lost; move it elsewhere")


def recomposition_psnr(layered: LayeredImage, original: UInt8[np.ndarray, "y x 4"]) -> float:
    """PSNR in dB of the layers' 8-bit composite against the input, both blended over white; infinite if equal."""
    composite, sums = layered.composite_8bit(), []
    for rows in parts_of(*original.shape[:2]):
        ours, theirs = (blended(x[rows], (255, 255, 255), np.float64) for x in (composite, original))
        sums.append(np.square((ours - theirs) / 255).sum())
    return decibels(math.fsum(sums) / (3 * original.shape[0] * original.shape[1]))


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
