"""Layers that lie in files, read again: results of decompositions, exported folders, and plain folders of PNGs."""

from pathlib import Path

from qil_jax.errors import QilError
from qil_jax.export.manifest import MANIFEST, RECORD, tree_from
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.pictures import read_bytes
from qil_jax.strict_json import read_json


def read_tree(folder: Path) -> LayerTree:
    """The layers of a result, of an exported folder, or of a folder of PNGs of one size, numbered bottom to top.

    The files of a result need not be those that were written: who paints over a layer may go on with it.

    Raises:
      QilError: if the folder is none of these, or its layers differ in size.
      ImageError: if a layer is missing or no picture.
    """
    if not folder.is_dir():
        raise QilError(f"{folder}: no such folder")
    listing = next((name for name in (RECORD, MANIFEST) if (folder / name).exists()), None)
    if listing is None:
        return LayerTree.of(LayeredImage.load(folder))
    fields = read_json(folder / listing, fix="mend it, or make the layers again")
    return tree_from(fields, lambda name: read_bytes(folder / name), str(folder), listing)
