"""Layered images as ZIP files of PNGs with a manifest, and what every ZIP that is read or written shares."""

import contextlib
import functools
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from qil_jax.errors import QilError
from qil_jax.export.bounds import require_bytes
from qil_jax.export.manifest import MANIFEST, ReadFile, manifest, tree_from
from qil_jax.export.masks import masks_of
from qil_jax.export.png import encoded, pictures
from qil_jax.files import opened
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.strict_json import parse

DATE = (1980, 1, 1, 0, 0, 0)
"""Date of all files in an archive, so that equal layers make equal archives."""


def write_zip(stack: LayeredImage | LayerTree, file: Path, *, hidden_masks: bool = False) -> None:
    """Write an archive of the files that `write_pngs` writes, and `manifest.json`.

    Args:
      hidden_masks: whether masks of hidden pixels are written beside the layers.

    Raises:
      FileExistsError: if the file exists.
      QilError: if there are to be masks, and a layer is a group.
    """
    tree = LayerTree.of(stack)
    masks = masks_of(tree) if hidden_masks else []
    names, layers = zip(*pictures(tree), strict=True)
    pngs = encoded(layers, profile=tree.layered.profile)
    members = dict(zip(map(str, names), pngs, strict=True)) | {mask.file: mask.png for mask in masks}
    with file.open("xb") as stream:
        packed(stream, {MANIFEST: json.dumps(manifest(tree, masks), indent=2).encode(), **members})


def read_zip(file: Path) -> LayerTree:
    """The layers of an archive that `write_zip` wrote. Nothing is unpacked to the disk.

    Raises:
      QilError: if the file is no such archive.
    """
    try:
        with members(file) as member:
            return tree_from(parse(member(MANIFEST)), member, "its layers")
    except QilError as error:
        raise QilError(f"{file}: {error}") from error
    except Exception as error:  # the unpacker raises arbitrary exceptions on malformed bytes
        raise QilError(f"{file}: cannot be read as a ZIP of layers ({error}); export it again") from error


def packed(stream: IO[bytes], members: Mapping[str, bytes]) -> None:
    """Write a ZIP of files that are compressed already, or short."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, DATE), data)


@contextlib.contextmanager
def members(file: Path) -> Iterator[ReadFile]:
    """A function from the names of an archive's files to their bytes. Each is unpacked once, however often it is read.

    Raises:
      QilError: if the archive is too large to be unpacked, or lacks a file that is read.
    """
    with opened(file) as stream, zipfile.ZipFile(stream) as archive:
        require_bytes(archive)

        @functools.cache
        def member(name: str) -> bytes:
            try:
                return archive.read(name)
            except KeyError as error:
                raise QilError(f"there is no {name} in it") from error

        yield member
