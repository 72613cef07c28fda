"""What `qil make-scenes` writes: scenes from seeds, as a dataset or as files."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath
from rich.progress import track

from qil_jax.documents.dataset import BuildInfo, Contents, write_dataset
from qil_jax.documents.runners import beam_options
from qil_jax.export.psd import write_psd
from qil_jax.files import whole_folder
from qil_jax.records.record import Record, encode
from qil_jax.records.splits import SPLITS
from qil_jax.scenes.assets import Assets, licences_in, load_assets
from qil_jax.scenes.scene import DESIGN, GROUPED, PHOTO, SIMPLE, VARIED, SceneConfig, make_scene

PRESETS = {
    "rich": SceneConfig(),
    "simple": SIMPLE,
    "grouped": GROUPED,
    "varied": VARIED,
    "design": DESIGN,
    "photo": PHOTO,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Distribution of the generated scenes.

    Attributes:
      config: distribution of the scenes' contents.
      assets: folder of pictures and fonts; None uses drawn shapes only.
    """

    config: SceneConfig
    assets: Path | None

    def scene(self, seed: int, split: str) -> Record:
        """The scene of a seed, made from the assets of one split only."""
        assets = None if self.assets is None else _assets(self.assets, split)
        return make_scene(seed, self.config, assets)

    def example(self, seed: int, split: str) -> dict[str, Any]:
        """The scene of a seed as a flat example of a dataset."""
        return encode(self.scene(seed, split))


@functools.cache
def _assets(folder: Path, split: str) -> Assets:
    return load_assets(folder, split)


def write_scenes(
    out: Path,
    seeds: range,
    recipe: Recipe,
    *,
    form: str = "records",
    split: str = "train",
    for_beam: Sequence[str] = (),
) -> None:
    """Write the scenes of seeds, atomically.

    Args:
      out: folder to write.
      seeds: a scene each.
      recipe: distribution of the scenes.
      form: "records" for a dataset with all splits, "psd" for a document each, "folders" for a folder of PNGs each.
      split: split whose assets documents and folders are made of.
      for_beam: options of Apache Beam, which writes a dataset.

    Raises:
      QilError, OSError: if assets or Beam's options cannot be used.
      FileExistsError: if the folder is not empty.
    """
    licences = "CC0-1.0" if recipe.assets is None else " AND ".join(licences_in(recipe.assets))
    if form == "records":
        options = beam_options(flags=for_beam)
        write_dataset(_contents(seeds, recipe), BuildInfo(licence=licences), epath.Path(out), options)
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty: take another folder")
    with whole_folder(out, overwrite=out.exists()) as draft:
        for seed in track(seeds, description="scenes"):
            _write_one(recipe.scene(seed, split), form, draft / f"scene_{seed:08d}")


def _contents(seeds: range, recipe: Recipe) -> Contents:
    """The scenes in splits of consecutive seeds; splits share no assets."""
    splits, start = {}, 0
    for split, share in SPLITS.items():
        stop = len(seeds) if split == "test" else start + round(share * len(seeds))
        splits[split] = [(f"{seed:08d}", (seed, split)) for seed in seeds[start:stop]]
        start = stop
    return Contents(splits=splits, make=recipe.example)


def _write_one(record: Record, form: str, path: Path) -> None:
    image = record.to_layered_image()
    if form == "folders":
        image.save(path)
        return
    write_psd(image, path.with_suffix(".psd"))
    path.with_suffix(".txt").write_text(record.caption + "\n")
    fields = {"source": record.source, "licence": record.licence, "category": record.category}
    path.with_suffix(".json").write_text(json.dumps(fields) + "\n")
