"""What the page knows of a result, as JSON values: its layers in tight boxes, its input, its facts, and its card."""

import base64
import dataclasses
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from qil_jax.export.names import safe_name
from qil_jax.export.nodes import tight
from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite_8bit
from qil_jax.layers.layer_tree import LayerTree

THUMBNAIL = 360
"""Longest side of a card's pictures in pixels."""
ON_CARD = 2
"""Number of facts on a card."""
NO_SCRIPT = "No edit script: this result has groups, and qil edit edits a group as one layer."
Leaf = tuple[BoxedLayer, tuple[int, ...]]
"""A layer that is no group, and the groups in which it lies, outermost first."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """A result as the page shows it.

    Attributes:
      tree: its layers. They are shown as a stack of those that are no groups, with headings for groups.
      title: its name on the page and, made safe, of downloaded files.
      original: the RGBA picture that was taken apart, stretched to the layers' canvas; None: there is no comparison.
      facts: what else is to be said, by name. The first two are shown on its card too.
    """

    tree: LayerTree
    title: str
    original: UInt8[np.ndarray, "h w 4"] | None = None
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def contents(entry: Entry) -> dict[str, Any]:
    """All that the viewer of a result needs. PNGs are in base64; layers are cut to what is visible."""
    groups: list[str] = []
    layers = [
        {"name": layer.name, "left": layer.left, "top": layer.top, "groups": path, "png": _png(layer.pixels)}
        for layer, path in leaves(entry.tree, groups)
    ]
    return {
        "title": entry.title,
        "file": safe_name(entry.title, "layers"),
        "size": entry.tree.layered.size,
        "layers": layers,
        "groups": groups,
        "original": None if entry.original is None else {"png": _png(entry.original)},
        "facts": [*entry.facts.items()],
        "no_script": NO_SCRIPT if groups else "",
    }


def card(entry: Entry) -> dict[str, Any]:
    """What the gallery shows of a result."""
    boxed = [layer for layer, _ in leaves(entry.tree, [])]
    size = entry.tree.layered.size
    return {
        "title": entry.title,
        "layers": len(boxed),
        "size": size,
        "facts": [f"{name} {value}" for name, value in [*entry.facts.items()][:ON_CARD]],
        "input": None if entry.original is None else _thumbnail(entry.original),
        "composite": _thumbnail(composite_8bit(boxed, size)),
    }


def leaves(tree: LayerTree, groups: list[str], path: tuple[int, ...] = ()) -> Iterator[Leaf]:
    """The layers of a tree that are no groups, bottom to top, cut to what is visible on the tree's canvas.

    The names of the groups that are met on the way are appended to `groups`; a path holds indices of that list.
    """
    for i, (pixels, name) in enumerate(zip(tree.layered.layers, tree.layered.names, strict=True)):
        if i not in tree.groups:
            yield tight(pixels, name), path
            continue
        groups.append(name)
        group = tree.groups[i]
        for part, inner in leaves(group.tree, groups, (*path, len(groups) - 1)):
            placed = dataclasses.replace(part, left=part.left + group.left, top=part.top + group.top)
            inside = placed.within(tree.layered.size)
            yield inside or BoxedLayer(pixels=np.zeros((1, 1, 4), np.uint8), left=0, top=0, name=part.name), inner


def _png(pixels: UInt8[np.ndarray, "h w 4"]) -> str:
    return _base64(pixels, "PNG")


def _thumbnail(pixels: UInt8[np.ndarray, "h w 4"]) -> str:
    picture = Image.fromarray(np.ascontiguousarray(pixels), "RGBA")
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return f"data:image/webp;base64,{_base64(np.asarray(picture), 'WEBP', quality=82)}"


def _base64(pixels: UInt8[np.ndarray, "h w 4"], form: str, **options: Any) -> str:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels), "RGBA").save(stream, form, **options)
    return base64.b64encode(stream.getvalue()).decode("ascii")
