"""Results of decompositions that were edited."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qil_jax.export.manifest import entries
from qil_jax.export.png import write_pngs
from qil_jax.export.psd import write_psd
from qil_jax.export.result import RECORD, checksums
from qil_jax.export.sheet import write_sheet
from qil_jax.files import whole_folder
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.profiles import profile_name


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
            "profile": profile_name(layered.profile),
            "layers": entries(LayerTree.of(layered)),
            "files": checksums(draft),
        }
        (draft / RECORD).write_text(json.dumps({**record, **fields}, indent=2) + "\n", encoding="utf-8")
