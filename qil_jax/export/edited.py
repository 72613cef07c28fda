"""Results of decompositions that are edited: their layers read, and written again as a result."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qil_jax.export.png import write_pngs
from qil_jax.export.psd import write_psd
from qil_jax.export.result import RECORD, ResultError, checksums, described, read_record
from qil_jax.export.sheet import write_sheet
from qil_jax.files import whole_folder
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.pictures import decoded, read_bytes


def read_layers(folder: Path) -> LayeredImage:
    """The layers of a result, whose files need not be those that were written: who paints over a layer may edit on.

    Raises:
      ResultError: if the folder is no result, or its layers differ in size.
      ImageError: if a layer is missing or no picture.
    """
    record = read_record(folder)
    try:
        files = [(folder / Path(layer["file"]).name, str(layer["name"])) for layer in (record or {})["layers"]]
    except (KeyError, TypeError) as error:
        raise ResultError(f"{folder}: its {RECORD} does not list layers with their names and files") from error
    layers = [np.asarray(decoded(read_bytes(file), str(file))) for file, _ in files]
    sizes = {layer.shape[1::-1] for layer in layers}
    if len(sizes) != 1:
        raise ResultError(f"{folder}: layers of sizes {sorted(sizes)}: one canvas is needed")
    return LayeredImage(layers=np.stack(layers), names=tuple(name for _, name in files))


def write_edited_result(folder: Path, layered: LayeredImage, record: Mapping[str, Any]) -> None:
    """Write the folder of a decomposition that was edited, which appears complete or not at all.

    It is as `write_result` makes it, but the sheet shows no input, and the record knows no quality of recomposition.

    Args:
      folder: the new folder; its parent is created if needed.
      layered: layers after editing.
      record: what was edited how, to be stored as JSON; names and checksums are added.

    Raises:
      FileExistsError: if the folder exists.
    """
    with whole_folder(folder) as draft:
        write_pngs(layered, draft)
        write_psd(layered, draft / "layers.psd")
        write_sheet(layered, None, draft / "sheet.png")
        fields = {
            "size": list(layered.size),
            "layers": described(LayerTree.of(layered), draft, draft),
            "files": checksums(draft),
        }
        (draft / RECORD).write_text(json.dumps({**record, **fields}, indent=2) + "\n", encoding="utf-8")
