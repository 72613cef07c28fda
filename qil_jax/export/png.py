"""Export of layers as one PNG per layer, and a folder per group."""

from pathlib import Path

from PIL import Image

from qil_jax.export.names import safe_name
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage


def layer_file(folder: Path, index: int, name: str) -> Path:
    """The file of a layer in its stack's folder; a group's layers lie beside it, in a folder without the suffix."""
    return folder / f"{index + 1:02d}_{safe_name(name)}.png"


def write_pngs(stack: LayeredImage | LayerTree, folder: Path) -> list[Path]:
    """Write straight RGBA PNGs of the whole canvas, bottom first: `01_name.png`, `02_name.png`, ...

    The layers of a group go into a folder of its name, `01_name/01_part.png` and so on, on the group's own canvas.

    Returns:
      The files of the stack's own layers.

    Raises:
      FileExistsError: if one of these files exists.
    """
    tree, files = LayerTree.of(stack), []
    for i, (layer, name) in enumerate(zip(tree.layered.layers, tree.layered.names, strict=True)):
        file = layer_file(folder, i, name)
        with file.open("xb") as stream:
            Image.fromarray(layer, "RGBA").save(stream, "PNG")
        if i in tree.groups:
            inner = file.with_suffix("")
            inner.mkdir()
            write_pngs(tree.groups[i].tree, inner)
        files.append(file)
    return files
