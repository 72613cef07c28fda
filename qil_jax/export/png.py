"""Export of layers as one PNG per layer, and a folder per group."""

import functools
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from qil_jax.export.names import safe_name
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.profiles import SRGB

HERE = PurePosixPath()
"""The folder to which paths are relative."""


def layer_file(folder: PurePosixPath, index: int, name: str) -> PurePosixPath:
    """The file of a layer in its stack's folder; a group's layers lie beside it, in a folder without the suffix."""
    return folder / f"{index + 1:02d}_{safe_name(name)}.png"


def pictures(
    tree: LayerTree, folder: PurePosixPath = HERE
) -> Iterator[tuple[PurePosixPath, UInt8[np.ndarray, "y x 4"]]]:
    """Relative path and pixels of each layer's file, those of groups included."""
    for i, (layer, name) in enumerate(zip(tree.layered.layers, tree.layered.names, strict=True)):
        file = layer_file(folder, i, name)
        yield file, layer
        if i in tree.groups:
            yield from pictures(tree.groups[i].tree, file.with_suffix(""))


def encoded(layers: Sequence[UInt8[np.ndarray, "_ _ 4"]], level: int = 6, profile: bytes = SRGB) -> list[bytes]:
    """Straight RGBA as PNG files, without loss, on all cores.

    Args:
      level: zlib's level, 1 for speed to 9 for size.
      profile: ICC profile of the colours, which is embedded.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(functools.partial(_encoded, level=level, profile=profile), layers))


def write_pngs(stack: LayeredImage | LayerTree, folder: Path) -> list[Path]:
    """Write straight RGBA PNGs of the whole canvas, bottom first: `01_name.png`, `02_name.png`, ...

    The layers of a group go into a folder of its name, `01_name/01_part.png` and so on, on the group's own canvas.
    A colour profile other than sRGB is embedded.

    Returns:
      The files of the stack's own layers.

    Raises:
      FileExistsError: if one of these files exists.
    """
    tree = LayerTree.of(stack)
    names, layers = zip(*pictures(tree), strict=True)
    for name, data in zip(names, encoded(layers, profile=tree.layered.profile), strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        with (folder / name).open("xb") as stream:
            stream.write(data)
    return [folder / name for name in names if len(name.parts) == 1]


def _encoded(pixels: UInt8[np.ndarray, "y x 4"], level: int, profile: bytes) -> bytes:
    stream, picture = io.BytesIO(), Image.fromarray(np.ascontiguousarray(pixels), "RGBA")
    picture.save(stream, "PNG", compress_level=level, icc_profile=profile or None)
    return stream.getvalue()
