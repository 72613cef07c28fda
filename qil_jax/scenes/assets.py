"""Assets, the pictures and fonts that scenes are made from, in the layout of `qil fetch-assets`.

One folder per package holds the files and `assets.json`, which gives the kind, name and licence of each. Pictures are
decoded on access, as thousands of them would not fit into memory.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from qil_jax.errors import QilError
from qil_jax.files import opened
from qil_jax.layers.visibility import visible_box
from qil_jax.options import CLOSED, fitted
from qil_jax.programs import called
from qil_jax.records.splits import split_of_text
from qil_jax.strict_json import read_json

LIST = "assets.json"
"""The file that lists the assets of a package."""


class Kind(StrEnum):
    """Kind of an asset."""

    OBJECT = "object"  # a cut-out with transparency
    BACKGROUND = "background"  # an opaque picture
    FONT = "font"  # a TrueType file


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Asset:
    """A picture that scenes may contain.

    Attributes:
      pixels: straight RGBA values, 8 bits each.
      name: description of the picture's content, as captions use it.
      package: name of the package that contains it.
      licence: licence as an SPDX expression.
    """

    pixels: UInt8[np.ndarray, "y x 4"]
    name: str
    package: str
    licence: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Font:
    """A TrueType font.

    Attributes:
      file: path of the font file.
      name: name of the font.
      package: name of the package that contains it.
      licence: licence as an SPDX expression.
    """

    file: str
    name: str
    package: str
    licence: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Assets:
    """The assets that scenes are made from. If there are none of a kind, drawn shapes and backgrounds replace them.

    Attributes:
      objects: pictures of objects with a transparent background.
      backgrounds: opaque pictures used as backgrounds.
      fonts: fonts used for text; if there are none, the font that Pillow ships is used.
    """

    objects: Sequence[Asset] = ()
    backgrounds: Sequence[Asset] = ()
    fonts: Sequence[Font] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """An entry of `assets.json`.

    Attributes:
      file: path relative to the package's folder.
      name: description of the picture's content, as captions use it.
      kind: kind of the asset.
      licence: licence as an SPDX expression.
    """

    __pydantic_config__ = CLOSED
    file: str
    name: str
    kind: Kind
    licence: str


class _Pictures(Sequence[Asset]):
    """Pictures that are decoded on access."""

    def __init__(self, items: Sequence[tuple[Path, Stored]]):
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Asset:  # pyright: ignore[reportIncompatibleMethodOverride] (no slices)
        folder, stored = self.items[index]
        pixels = _decoded(str(folder / stored.file))
        return Asset(pixels=pixels, name=stored.name, package=folder.name, licence=stored.licence)


@functools.lru_cache(maxsize=256)
def _decoded(file: str) -> UInt8[np.ndarray, "y x 4"]:
    with opened(Path(file)) as stream, Image.open(stream) as image:
        pixels = np.asarray(image.convert("RGBA"))
    box = visible_box(pixels[..., 3] > 8)
    if box is None:
        raise QilError(f"{file}: an asset that shows nothing: remove it from {LIST}")
    left, top, right, bottom = box
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def load_assets(folder: Path, split: str | None = None) -> Assets:
    """The assets of all packages in a folder.

    Args:
      folder: folder that `qil fetch-assets` filled.
      split: train, validation or test: only the assets of this split, by the hash of package and file, so that scenes
        of different splits never share one. None loads all.

    Raises:
      QilError: if there is no package, or a package has no valid list.
    """
    found: dict[Kind, list[tuple[Path, Stored]]] = {kind: [] for kind in Kind}
    for file in _lists(folder):
        for stored in read_list(file):
            if split is None or split_of_text(f"{file.parent.name}/{stored.file}") == split:
                found[stored.kind].append((file.parent, stored))
    fonts = [
        Font(file=str(package / x.file), name=x.name, package=package.name, licence=x.licence)
        for package, x in found[Kind.FONT]
    ]
    return Assets(
        objects=_Pictures(found[Kind.OBJECT]), backgrounds=_Pictures(found[Kind.BACKGROUND]), fonts=tuple(fonts)
    )


def licences_in(folder: Path) -> list[str]:
    """All licences of the assets in a folder, sorted.

    Raises:
      QilError: as `load_assets`.
    """
    return sorted({stored.licence for file in _lists(folder) for stored in read_list(file)})


def _lists(folder: Path) -> list[Path]:
    lists = sorted(folder.glob(f"*/{LIST}"))
    if not lists:
        raise QilError(f"{folder}: no package with {LIST} in it: fill it by {called('fetch-assets')} --out {folder}")
    return lists


def read_list(file: Path) -> list[Stored]:
    """The assets of a package.

    Raises:
      QilError: if the file, which the message names, is no list of assets.
    """
    fix = "remove its folder and fetch it again"
    return fitted(list[Stored], read_json(file, fix=fix), where=f"{file} does not list assets", fix=fix)


def write_list(file: Path, assets: Sequence[Stored]) -> None:
    """Write the list of a package's assets, which `read_list` reads."""
    rows = [dataclasses.asdict(asset) for asset in assets]
    file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
