"""The formats of layered images, each written and read by one function."""

import json
from collections.abc import Callable
from pathlib import Path

from qil_jax.errors import QilError
from qil_jax.export.archive import read_zip, write_zip
from qil_jax.export.format import Format
from qil_jax.export.manifest import MANIFEST, manifest
from qil_jax.export.masks import masks_of, write_masks
from qil_jax.export.ora import read_ora, write_ora
from qil_jax.export.png import write_pngs
from qil_jax.export.pptx import read_pptx, write_pptx
from qil_jax.export.psd import read_psd, write_psd
from qil_jax.export.stored import read_tree
from qil_jax.files import whole_file, whole_folder
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage


def write(
    stack: LayeredImage | LayerTree,
    path: Path,
    format: Format,
    *,
    native_text: bool = False,
    hidden_masks: bool = False,
) -> None:
    """Write a file, or for `PNG` a folder, which appears whole or not at all.

    Args:
      native_text: whether a presentation gets text boxes for layers that are text.
      hidden_masks: whether a folder or a ZIP gets masks of hidden pixels beside the layers.

    Raises:
      FileExistsError: if the path exists.
      QilError: if the format cannot hold the layers, or there are to be masks and a layer is a group.
    """
    with whole_folder(path) if format is Format.PNG else whole_file(path) as draft:
        if native_text and format is Format.PPTX:
            write_pptx(stack, draft, native_text=True)
        else:
            write_draft(LayerTree.of(stack), draft, format, hidden_masks=hidden_masks)


def write_draft(tree: LayerTree, path: Path, format: Format, *, hidden_masks: bool) -> None:
    """As `write`, but a file may be left half written, and a folder must be there."""
    if hidden_masks and format in MASKED:
        MASKED[format](tree, path, hidden_masks=True)
    else:
        WRITERS[format](tree, path)


def read(path: Path) -> LayerTree:
    """The layers of a folder that `read_tree` reads, or of a PSD, ORA, PPTX or ZIP file, by its suffix.

    Raises:
      QilError: if there are no layers of a known format.
    """
    suffix = path.suffix.lower().lstrip(".")
    if not path.exists():
        raise QilError(f"{path}: no such file or folder")
    if not path.is_dir() and (suffix not in set(Format) or suffix == Format.PNG):
        known = ", ".join(f".{x}" for x in Format if x is not Format.PNG)
        raise QilError(f"{path}: layers are read from folders and from files that end with {known}")
    return read_tree(path) if path.is_dir() else READERS[Format(suffix)](path)


def write_folder(tree: LayerTree, folder: Path, *, hidden_masks: bool = False) -> None:
    """Write PNGs and their manifest into a folder, and masks of hidden pixels beside them if they are asked for."""
    write_pngs(tree, folder)
    masks = masks_of(tree) if hidden_masks else []
    write_masks(masks, folder)
    text = json.dumps(manifest(tree, masks), indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


WRITERS: dict[Format, Callable[[LayerTree, Path], object]] = {
    Format.PNG: write_folder,
    Format.PSD: write_psd,
    Format.PPTX: write_pptx,
    Format.ORA: write_ora,
    Format.ZIP: write_zip,
}
"""How each format is written, to a path that does not exist."""
MASKED: dict[Format, Callable[..., object]] = {Format.PNG: write_folder, Format.ZIP: write_zip}
"""How the formats are written that may hold masks of hidden pixels."""
READERS: dict[Format, Callable[[Path], LayerTree]] = {
    Format.PNG: read_tree,
    Format.PSD: read_psd,
    Format.PPTX: read_pptx,
    Format.ORA: read_ora,
    Format.ZIP: read_zip,
}
"""How each format is read."""
