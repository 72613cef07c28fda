"""The JSON that says what a folder of layers holds: names, files, boxes, order and opacity, for programs and for us."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any

import numpy as np
from pydantic import Field, StrictInt

from qil_jax.errors import QilError, shown
from qil_jax.export.bounds import require_depth, require_pixels
from qil_jax.export.masks import Mask, with_masks
from qil_jax.export.png import HERE, layer_file
from qil_jax.layers.layer_tree import Group, LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.pictures import picture_size, read_picture
from qil_jax.layers.profiles import SRGB, image_converted, profile_name
from qil_jax.layers.visibility import visible_box
from qil_jax.options import Text, fitted

MANIFEST = "manifest.json"
"""The manifest's file, in exported folders and ZIPs."""
RECORD = "result.json"
"""The file that identifies a folder as a result: a manifest, its settings, and the SHA-256 of every other file."""
ReadFile = Callable[[str], bytes]
"""A function from a file's relative path to its bytes."""
OPACITY = 1.0
"""The opacity of every layer: what shows how much is in its alpha."""
Offset = Annotated[StrictInt, Field(ge=-(1 << 20), le=1 << 20)]
"""A place in pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListedGroup:
    """Place and layers of a layer that is a group, as `entries` lists them."""

    left: Offset
    top: Offset
    layers: list["ListedLayer"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListedLayer:
    """A layer as `entries` lists it, as far as it is read: boxes follow from pixels."""

    name: str
    file: str
    z: StrictInt | None = None
    opacity: Annotated[float, Field(ge=OPACITY, le=OPACITY)] = OPACITY
    group: ListedGroup | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What a result was asked for."""

    prompt: Text = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """A manifest, or the record of a result, which has settings in place of a caption, or neither if it was edited."""

    layers: Annotated[list[ListedLayer], Field(min_length=1)]
    caption: Text = ""
    decisions: tuple[Text, ...] = ()
    settings: Asked | None = None


def manifest(tree: LayerTree, masks: Sequence[Mask] = ()) -> dict[str, Any]:
    """Size, name of the colour profile, caption, what was done to the layers, and these as `entries` describes them.

    Args:
      tree: the layers.
      masks: masks of hidden pixels, if they are written; then each layer says which is its own.
    """
    stack = tree.layered
    said = {"profile": profile_name(stack.profile), "caption": stack.caption, "decisions": list(stack.decisions)}
    return {"size": list(stack.size), **said, "layers": with_masks(entries(tree), masks)}


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
    """The layers that a manifest or a result's record lists, with their colour profile if all files have one.

    Files of different profiles, as when one was painted over, are converted to sRGB.

    Args:
      fields: the manifest or record as it came from JSON.
      read: gives the bytes of a layer's file.
      where: what messages call the place of the files.
      listing: what they call the manifest.

    Raises:
      QilError: if the layers are not listed, differ in size, or are more than `bounds` allows.
    """
    said = _listing(fields, where, listing)
    files = _files(said.layers, f"{where}: its {listing}")
    require_pixels(sum(math.prod(picture_size(read(file), f"{where}: {file}")) for file in files))
    tree = _tree(said.layers, read, where, said.caption if said.settings is None else said.settings.prompt)
    tree = tree if len(_profiles(tree)) == 1 else tree.with_profile(SRGB)
    return dataclasses.replace(tree, layered=dataclasses.replace(tree.layered, decisions=said.decisions))


def listed_files(fields: Any, where: str, listing: str = MANIFEST) -> list[str]:
    """The relative paths of the layers that a manifest or a result's record lists, bottom to top, groups as one layer.

    Raises:
      QilError: if it lists none, or files elsewhere.
    """
    return [_inside(layer.file) for layer in _listing(fields, where, listing).layers]


def _listing(fields: Any, where: str, listing: str) -> Listing:
    place, fix = f"{where}: its {listing} does not list layers as it should", "mend it, or make the layers again"
    return fitted(Listing, fields, where=place, fix=fix)


def _files(layers: Sequence[ListedLayer], where: str, depth: int = 0) -> Iterator[str]:
    """The file of each layer, those of groups included."""
    require_depth(depth)
    for i, layer in enumerate(layers):
        if layer.z not in (None, i):
            raise QilError(f"{where}: {shown(layer.name)}, number {i} of its list, has the z {layer.z}: order it by z")
        yield _inside(layer.file)
        if layer.group is not None:
            yield from _files(layer.group.layers, where, depth + 1)


def _tree(listed: Sequence[ListedLayer], read: ReadFile, where: str, caption: str = "") -> LayerTree:
    pictures = [read_picture(read(layer.file), f"{where}: {layer.file}") for layer in listed]
    profile = one.pop() if len(one := {picture.profile for picture in pictures}) == 1 else SRGB
    layers = [np.asarray(image_converted(picture.image, picture.profile, profile)) for picture in pictures]
    sizes = {layer.shape[1::-1] for layer in layers}
    if len(sizes) != 1:
        raise QilError(f"{where}: layers of sizes {sorted(sizes)}: one canvas is needed")
    names = tuple(layer.name for layer in listed)
    groups = {
        i: Group(tree=_tree(inner.layers, read, where), left=inner.left, top=inner.top)
        for i, layer in enumerate(listed)
        if (inner := layer.group) is not None
    }
    stack = LayeredImage(layers=np.stack(layers), names=names, caption=caption, profile=profile)
    return LayerTree(layered=stack, groups=groups)


def _profiles(tree: LayerTree) -> set[bytes]:
    """The profiles of a tree's stacks."""
    return {tree.layered.profile}.union(*(_profiles(group.tree) for group in tree.groups.values()))


def _inside(name: str) -> str:
    """The path of a file below a folder.

    Raises:
      QilError: if it leads out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise QilError(f"{name!r} leads out of the folder that lists it")
    return name
