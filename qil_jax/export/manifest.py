"""The JSON that says what a folder of layers holds: names, files, boxes, order and opacity, for programs and for us."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from qil_jax.errors import QilError
from qil_jax.export.bounds import require_depth, require_pixels
from qil_jax.export.png import HERE, layer_file
from qil_jax.layers.layer_tree import Group, LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.pictures import decoded, picture_size
from qil_jax.layers.visibility import visible_box

MANIFEST = "manifest.json"
"""The manifest's file, in exported folders and ZIPs."""
RECORD = "result.json"
"""The file that identifies a folder as a result: a manifest, its settings, and the SHA-256 of every other file."""
ReadFile = Callable[[str], bytes]
"""A function from a file's relative path to its bytes."""
OPACITY = 1.0
"""The opacity of every layer: what shows how much is in its alpha."""


def manifest(tree: LayerTree) -> dict[str, Any]:
    """Size of the canvas, caption, what was done to the layers, and the layers as `entries` describes them."""
    said = {"caption": tree.layered.caption, "decisions": list(tree.layered.decisions)}
    return {"size": list(tree.layered.size), **said, "layers": entries(tree)}


def entries(tree: LayerTree, folder: PurePosixPath = HERE) -> list[dict[str, Any]]:
    """Name, file, z-index, box and opacity of each layer, bottom to top; place and layers of those that are groups.

    Boxes are left, top, right, bottom of the visible pixels on the stack's canvas; None where nothing is visible.
    """
    found = []
    for i, name in enumerate(tree.layered.names):
        file = layer_file(folder, i, name)
        box = visible_box(tree.layered.layers[i, ..., 3] > 0)
        entry: dict[str, Any] = {"name": name, "file": str(file), "z": i, "box": box and [*box], "opacity": OPACITY}
        if i in tree.groups:
            group, inner = tree.groups[i], entries(tree.groups[i].tree, file.with_suffix(""))
            entry["group"] = {"left": group.left, "top": group.top, "size": [*group.tree.layered.size], "layers": inner}
        found.append(entry)
    return found


def tree_from(fields: Any, read: ReadFile, where: str, listing: str = MANIFEST) -> LayerTree:
    """The layers that a manifest or a result's record lists.

    Args:
      fields: the manifest or record as it came from JSON.
      read: gives the bytes of a layer's file.
      where: what messages call the place of the files.
      listing: what they call the manifest.

    Raises:
      QilError: if the layers are not listed, differ in size, or are more than `bounds` allows.
    """
    try:
        files = _files(fields["layers"])
        require_pixels(sum(math.prod(picture_size(read(file), f"{where}: {file}")) for file in files))
        tree = _tree(fields["layers"], read, where, _caption(fields))
        decisions = tuple(map(str, fields.get("decisions") or ()))
        return dataclasses.replace(tree, layered=dataclasses.replace(tree.layered, decisions=decisions))
    except QilError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise QilError(f"{where}: its {listing} does not list layers with their names and files") from error


def _caption(fields: Mapping[str, Any]) -> str:
    """The caption of a manifest, or what a result was asked for; empty for a result that was edited."""
    settings = fields.get("settings")
    return str(settings.get("prompt", "")) if isinstance(settings, Mapping) else str(fields.get("caption", ""))


def _files(entries: Sequence[Mapping[str, Any]], depth: int = 0) -> Iterator[str]:
    """The file of each layer, those of groups included."""
    require_depth(depth)
    for entry in entries:
        yield _inside(str(entry["file"]))
        if (inner := entry.get("group")) is not None:
            yield from _files(inner["layers"], depth + 1)


def _tree(entries: Sequence[Mapping[str, Any]], read: ReadFile, where: str, caption: str = "") -> LayerTree:
    files = [_inside(str(entry["file"])) for entry in entries]
    layers = [np.asarray(decoded(read(file), f"{where}: {file}")) for file in files]
    sizes = {layer.shape[1::-1] for layer in layers}
    if len(sizes) != 1:
        raise QilError(f"{where}: layers of sizes {sorted(sizes)}: one canvas is needed")
    names = tuple(str(entry["name"]) for entry in entries)
    groups = {
        i: Group(tree=_tree(inner["layers"], read, where), left=int(inner["left"]), top=int(inner["top"]))
        for i, entry in enumerate(entries)
        if (inner := entry.get("group")) is not None
    }
    return LayerTree(layered=LayeredImage(layers=np.stack(layers), names=names, caption=caption), groups=groups)


def _inside(name: str) -> str:
    """The path of a file below a folder.

    Raises:
      QilError: if it leads out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise QilError(f"{name!r} leads out of the folder that lists it")
    return name
