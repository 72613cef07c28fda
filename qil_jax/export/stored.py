"""Layers of folders, read again: results of decompositions with their groups, and plain folders of PNGs."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from qil_jax.errors import QilError
from qil_jax.export.result import RECORD, ResultError, read_record
from qil_jax.layers.layer_tree import Group, LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.pictures import decoded, read_bytes


def read_tree(folder: Path) -> LayerTree:
    """The layers of a result, or of a folder of PNGs of one size, numbered bottom to top.

    The files of a result need not be those that were written: who paints over a layer may go on with it.

    Raises:
      QilError: if the folder is neither, or its layers differ in size.
      ImageError: if a layer is missing or no picture.
    """
    if not folder.is_dir():
        raise QilError(f"{folder}: no such folder")
    if not (folder / RECORD).exists():
        return LayerTree.of(LayeredImage.load(folder))
    record = read_record(folder)
    try:
        return _tree(folder, (record or {})["layers"], _prompt(record or {}))
    except QilError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ResultError(f"{folder}: its {RECORD} does not list layers with their names and files") from error


def _prompt(record: Mapping[str, Any]) -> str:
    """What a result was asked for; empty for a result that was edited."""
    settings = record.get("settings")
    return str(settings.get("prompt", "")) if isinstance(settings, Mapping) else ""


def _tree(folder: Path, entries: Sequence[Mapping[str, Any]], caption: str = "") -> LayerTree:
    files = [folder / _inside(str(entry["file"])) for entry in entries]
    layers = [np.asarray(decoded(read_bytes(file), str(file))) for file in files]
    sizes = {layer.shape[1::-1] for layer in layers}
    if len(sizes) != 1:
        raise ResultError(f"{folder}: layers of sizes {sorted(sizes)}: one canvas is needed")
    names = tuple(str(entry["name"]) for entry in entries)
    groups = {
        i: Group(tree=_tree(folder, inner["layers"]), left=int(inner["left"]), top=int(inner["top"]))
        for i, entry in enumerate(entries)
        if (inner := entry.get("group")) is not None
    }
    return LayerTree(layered=LayeredImage(layers=np.stack(layers), names=names, caption=caption), groups=groups)


def _inside(name: str) -> PurePosixPath:
    """The path of a file below a folder.

    Raises:
      ValueError: if it leads out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name} leads out of the folder")
    return path
