"""Masks of the pixels that nobody sees, beside the layers whose pixels they are."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qil_jax.errors import QilError
from qil_jax.export.png import HERE, layer_file
from qil_jax.layers.hidden import hidden
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import HIDDEN, LayeredImage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
    """The file of one layer's hidden pixels.

    Attributes:
      file: its path from the folder of the layers.
      share: how many of the layer's pixels of positive alpha are hidden, in [0, 1]; 0 for an empty layer.
      png: the file, in 8-bit grey of the canvas's size: 255 where the layer is hidden, else 0.
    """

    file: str
    share: float
    png: bytes


def masks_of(stack: LayeredImage | LayerTree) -> list[Mask]:
    """The masks of a stack's layers, bottom to top.

    Raises:
      QilError: if a layer is a group: what its parts hide depends on where each of them lies.
    """
    tree = LayerTree.of(stack)
    if tree.groups:
        raise QilError("masks of hidden pixels are made of plain stacks only, and these layers have groups")
    layered, found = tree.layered, []
    for i, (layer, mask) in enumerate(zip(layered.layers, hidden(layered.layers), strict=True)):
        count = int(np.count_nonzero(layer[..., 3]))
        share = round(int(np.count_nonzero(mask)) / max(count, 1), 4)
        file = layer_file(HERE, i, layered.names[i]).with_suffix(HIDDEN)
        stream = io.BytesIO()
        Image.fromarray(mask.astype(np.uint8) * 255, "L").save(stream, "PNG")
        found.append(Mask(file=str(file), share=share, png=stream.getvalue()))
    return found


def write_masks(masks: Sequence[Mask], folder: Path) -> None:
    """Write the files of masks.

    Raises:
      FileExistsError: if one of them exists.
    """
    for mask in masks:
        with (folder / mask.file).open("xb") as stream:
            stream.write(mask.png)


def with_masks(entries: Sequence[dict[str, Any]], masks: Sequence[Mask]) -> list[dict[str, Any]]:
    """The entries of layers in a manifest, each with the file and the share of its hidden pixels if there are masks."""
    if not masks:
        return [*entries]
    said = [{"hidden": {"file": mask.file, "share": mask.share}} for mask in masks]
    return [entry | more for entry, more in zip(entries, said, strict=True)]
