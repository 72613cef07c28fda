"""The layered image, the data structure that datasets, inference, evaluation and export exchange."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from qil_jax.errors import QilError, halved
from qil_jax.files import read_text, whole_folder
from qil_jax.layers.compositing import parts_of
from qil_jax.layers.pictures import decoded, read_bytes
from qil_jax.layers.profiles import SRGB, converted
from qil_jax.options import fitted
from qil_jax.strict_json import read_json

METADATA = "layered.json"
"""The file of names, source, licence and decisions."""
CAPTION = "caption.txt"
"""The file of the caption."""
HIDDEN = ".hidden.png"
"""What the file of a mask of hidden pixels ends with, after the name of its layer's PNG."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayeredImage:
    """Layers on one canvas, bottom to top: 8-bit RGBA with straight (not premultiplied) alpha.

    Attributes:
      layers: RGBA pixels of the layers; RGB under alpha 0 is kept as given.
      names: names of the layers, one per layer.
      caption: description of the composite.
      source: path, address or seed from which the image was made.
      licence: licence of the source, as an SPDX expression where there is one.
      decisions: changes made to the image during preparation, in order, one sentence each.
      profile: ICC profile of the colours, as `profiles.rgb_profile` gives it; in files it is that of each PNG.

    Raises:
      QilError: listing everything that does not fit.
    """

    layers: UInt8[np.ndarray, "l y x 4"]
    names: tuple[str, ...]
    caption: str = ""
    source: str = ""
    licence: str = ""
    decisions: tuple[str, ...] = ()
    profile: bytes = dataclasses.field(default=SRGB, repr=False)

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check shapes and types.

        Raises:
          QilError: listing everything that does not fit.
        """
        problems = []
        if self.layers.dtype != np.uint8:
            problems.append(f"layers have dtype {self.layers.dtype}: convert them to uint8")
        if self.layers.ndim != 4 or self.layers.shape[-1] != 4:
            problems.append(f"layers have shape {self.layers.shape}: they must be (layers, height, width, 4)")
        elif 0 in self.layers.shape:
            problems.append(f"layers have shape {self.layers.shape}: at least one layer and one pixel are needed")
        if half := halved(self.caption):
            problems.append(f"the caption has half of a surrogate pair, {half}: no text file can hold it, leave it out")
        if len(self.names) != len(self.layers):
            problems.append(f"{len(self.names)} names for {len(self.layers)} layers: give one each")
        if problems:
            raise QilError("not a layered image:\n  " + "\n  ".join(problems))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the canvas in pixels."""
        return self.layers.shape[2], self.layers.shape[1]

    def composite(self) -> Float[np.ndarray, "y x 4"]:
        """All layers alpha-blended in order: straight RGBA in [0, 1], in double precision.

        C_i = a_i RGB_i + (1 - a_i) C_{i-1} on premultiplied colour (arXiv 2512.15603, section 3); colour is 0 under
        alpha 0.
        """
        found = np.empty(self.layers.shape[1:])
        for rows in parts_of(*self.layers.shape[1:3]):
            found[rows] = _composite(self.layers[:, rows])
        return found

    def composite_8bit(self) -> UInt8[np.ndarray, "y x 4"]:
        """`composite`, rounded once to 8 bits. Memory beside it does not grow with the canvas."""
        found = np.empty(self.layers.shape[1:], np.uint8)
        for rows in parts_of(*self.layers.shape[1:3]):
            found[rows] = np.round(_composite(self.layers[:, rows]) * 255)
        return found

    def with_profile(self, profile: bytes) -> "LayeredImage":
        """The layers with the colours of another profile, SRGB or one of `profiles.rgb_profile`; alphas stay.

        Colours that the profile lacks are clipped, and soft edges blend by its colours, which shows little.
        """
        if profile == self.profile:
            return self
        layers = np.stack([converted(layer, self.profile, profile) for layer in self.layers])
        return dataclasses.replace(self, layers=layers, profile=profile)

    def save(self, folder: Path) -> None:
        """Write a folder of `000.png` (bottom), `001.png`, ..., `caption.txt` and `layered.json`, without loss.

        The folder appears whole or not at all.

        Raises:
          FileExistsError: if the folder exists.
        """
        with whole_folder(folder) as draft:
            for i, layer in enumerate(self.layers):
                Image.fromarray(layer, "RGBA").save(draft / f"{i:03d}.png", icc_profile=self.profile or None)
            (draft / CAPTION).write_text(self.caption, encoding="utf-8", newline="")
            fields = {"names": self.names, "source": self.source, "licence": self.licence, "decisions": self.decisions}
            (draft / METADATA).write_text(json.dumps(fields, ensure_ascii=True, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, order: Callable[[Path], tuple[int, str]] | None = None) -> "LayeredImage":
        """Read what `save` wrote, or any folder of equally large PNGs numbered bottom to top, in sRGB.

        `caption.txt` and `layered.json` may be absent: then the caption is empty and the files' stems are the names.
        `order` gives the sort key of a file, by default the number that its name starts with.

        Raises:
          QilError: naming the folder and what in it does not fit.
        """
        files = sorted(pngs_in(folder), key=order or _first_number)
        if not files:
            raise QilError(f"{folder}: no PNG in it: a layered image is a folder of 000.png, 001.png, ...")
        layers = [np.asarray(decoded(read_bytes(file), str(file))) for file in files]
        sizes = {layer.shape[1::-1] for layer in layers}
        if len(sizes) > 1:
            raise QilError(f"{folder}: layers of different sizes {sorted(sizes)}: put them on one canvas")
        said = _metadata(folder / METADATA)
        caption = read_text(folder / CAPTION) if (folder / CAPTION).exists() else ""
        names = said.names or tuple(file.stem for file in files)
        if len(names) != len(layers):
            raise QilError(f"{folder}: {len(names)} names in {METADATA} for {len(layers)} PNGs: one of them is missing")
        said = dataclasses.replace(said, names=names)
        return cls(layers=np.stack(layers), caption=caption, **dataclasses.asdict(said))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
    """The content of `layered.json`; without names, those of the files are meant."""

    names: tuple[str, ...] = ()
    source: str = ""
    licence: str = ""
    decisions: tuple[str, ...] = ()


def _composite(layers: UInt8[np.ndarray, "l y x 4"]) -> Float[np.ndarray, "y x 4"]:
    colour = np.zeros((*layers.shape[1:3], 3))
    alpha = np.zeros((*layers.shape[1:3], 1))
    for layer in layers:
        if not layer[..., 3].any():
            continue
        straight = layer.astype(np.float64) / 255
        over = straight[..., 3:]
        colour = over * straight[..., :3] + (1 - over) * colour
        alpha = over + (1 - over) * alpha
    straight_colour = np.divide(colour, alpha, out=np.zeros_like(colour), where=alpha > 0)
    return np.concatenate([straight_colour, alpha], axis=-1)


def pngs_in(folder: Path) -> list[Path]:
    """The PNGs of a folder in no order, without the masks of hidden pixels that lie beside some of them."""
    files = {file.name: file for file in folder.glob("*.png")}
    return [
        x for name, x in files.items() if not name.endswith(HIDDEN) or f"{name.removesuffix(HIDDEN)}.png" not in files
    ]


def _metadata(file: Path) -> Metadata:
    fix = "mend or remove it"
    return fitted(Metadata, read_json(file, fix=fix), where=str(file), fix=fix) if file.exists() else Metadata()


def _first_number(file: Path) -> tuple[int, str]:
    digits = re.match(r"\d+", file.stem)
    if digits is None:
        raise QilError(f"{file}: its name does not start with a number: number layers bottom to top")
    return int(digits.group()), file.name
