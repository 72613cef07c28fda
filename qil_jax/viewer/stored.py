"""Entries of the page from folders: results of decompositions, and plain folders of PNGs."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from qil_jax.errors import ProblemsError, QilError
from qil_jax.export.result import RECORD, read_record
from qil_jax.export.stored import read_tree
from qil_jax.layers.pictures import decoded, read_bytes
from qil_jax.layers.profiles import SRGB
from qil_jax.programs import called
from qil_jax.viewer.entry import Entry

FAULTS = {"empty": "empty", "duplicates": "double", "full_canvas": "full"}
"""Counts of a result's health, and how the page calls such layers."""


def result_folders(paths: Iterable[Path]) -> list[Path]:
    """The folders of layers among paths: each itself, or those directly in it.

    Raises:
      ProblemsError: listing the paths at which there is none.
    """
    found, problems = [], []
    for path in paths:
        inner = [path] if _has_layers(path) else sorted(filter(_has_layers, path.iterdir())) if path.is_dir() else []
        found += inner
        if not inner:
            what = "holds no result and no numbered PNGs" if path.is_dir() else "is no folder"
            problems.append(
                f"{path}: {what}; give a result of {called('decompose')}, a folder of results, or one of layers as PNGs"
            )
    if problems:
        raise ProblemsError("cannot show", problems)
    return found


def stored_entry(folder: Path, inputs: Sequence[Path] = ()) -> Entry:
    """The entry of a folder.

    The input is the file among `inputs` or beside the folder that has the SHA-256 which the result recorded; folders
    among `inputs` are searched for the recorded name. A single file is taken as it is where nothing is recorded.

    Raises:
      QilError: if the folder holds no layers that can be read, or a file of `inputs` is no picture of the result.
    """
    record = read_record(folder) or {}
    original = _original(folder, record, inputs)
    return Entry(
        tree=read_tree(folder).with_profile(SRGB), title=folder.resolve().name, original=original, facts=_facts(record)
    )


def _has_layers(path: Path) -> bool:
    hidden = path.name.startswith(".") and path.name not in (".", "..")
    return not hidden and path.is_dir() and ((path / RECORD).is_file() or any(path.glob("[0-9]*.png")))


def _original(folder: Path, record: Mapping[str, Any], inputs: Sequence[Path]) -> UInt8[np.ndarray, "h w 4"] | None:
    """The picture that a result was made of, as far as it can be found."""
    sha256, name = record.get("input_sha256"), PurePath(str(record.get("input", ""))).name
    given = [path for path in inputs if not path.is_dir()]
    for path in given if sha256 is None else ():
        return np.asarray(decoded(read_bytes(path), str(path)))
    folders = [path for path in inputs if path.is_dir()] or [folder.parent, Path()]
    nearby = [place / name for place in folders if name and (place / name).is_file()]
    for path in (*given, *nearby):
        data = read_bytes(path)
        if hashlib.sha256(data).hexdigest() == sha256:
            return np.asarray(decoded(data, str(path)))
        if path in given:
            raise QilError(
                f"{path}: is not the picture of which {folder} was made ({name or 'unnamed'}, by its SHA-256)"
            )
    return None


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    """What a result says of itself; a record may say anything."""
    psnr, health = record.get("recomposition_psnr_db"), record.get("health")
    found = {}
    if record.get("recomposition_exact") is True:
        found["PSNR"] = "exact"
    elif isinstance(psnr, int | float):
        found["PSNR"] = f"{psnr:.1f} dB"
    if isinstance(health, Mapping):
        counts = [f"{health[key]} {word}" for key, word in FAULTS.items() if health.get(key)]
        found["Faults"] = ", ".join(counts) or "none"
    settings, checkpoint = record.get("settings"), record.get("checkpoint")
    settings = settings if isinstance(settings, Mapping) else {}
    checkpoint = checkpoint if isinstance(checkpoint, Mapping) else {}
    others = {"Input": record.get("input"), "Prompt": settings.get("prompt"), "Checkpoint": checkpoint.get("folder")}
    decisions = record.get("decisions")
    if isinstance(decisions, list):
        others["Decisions"] = "; ".join(map(str, decisions))
    return found | {name: str(value) for name, value in others.items() if value}
