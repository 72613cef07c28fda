"""Make layered scenes from seeds: a dataset of records, Photoshop documents, or folders of PNGs (docs/data.md).

python tools/make_scenes.py --count 10000 --out FOLDER [--preset rich|simple|grouped] [--side 128] [--seed 0]
                            [--format records|psd|folders] [--assets FOLDER]
"""

import argparse
import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from etils import epath
from rich.progress import track

from qil_jax.data.assets import Assets, licences_in, load_assets
from qil_jax.data.dataset import Contents, DatasetFacts, write_dataset
from qil_jax.data.records import Record, encode
from qil_jax.data.scenes import GROUPED, SIMPLE, SceneConfig, make_scene
from qil_jax.export.psd import write_psd

PRESETS = {"rich": SceneConfig(), "simple": SIMPLE, "grouped": GROUPED}
SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--count", type=int, required=True, help="of scenes, all splits together")
    parse.add_argument("--out", required=True, help="folder to write")
    few = "simple: few large opaque things; grouped: the same, merged"
    parse.add_argument("--preset", choices=tuple(PRESETS), default="rich", help=few)
    parse.add_argument("--side", type=int, help="of the canvas in pixels, 32 at least; the preset's own if not given")
    parse.add_argument("--seed", type=int, default=0, help="of the first scene; the next have the next seeds")
    parse.add_argument("--format", choices=("records", "psd", "folders"), default="records")
    parse.add_argument("--assets", type=Path, help="what fetch_assets.py filled; else all is drawn")
    parse.add_argument("--split", choices=tuple(SHARES), default="train", help="of the assets, for psd and folders")
    return parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the scenes of a run share."""

    config: SceneConfig
    assets: Path | None

    def scene(self, seed: int, split: str) -> Record:
        """The scene of a seed, from the assets of a split alone."""
        assets = None if self.assets is None else _assets(self.assets, split)
        return make_scene(seed, self.config, assets)

    def example(self, seed: int, split: str) -> dict[str, Any]:
        """That scene as a flat example."""
        return encode(self.scene(seed, split))


@functools.cache
def _assets(folder: Path, split: str) -> Assets:
    return load_assets(folder, split)


def main(arguments: list[str] | None = None) -> int:
    """Write the scenes; 0 if all went well."""
    args, beam_arguments = parser().parse_known_args(arguments)
    config = PRESETS[args.preset]
    config = dataclasses.replace(config, side=config.side if args.side is None else args.side)
    if args.count < 1 or config.side < 32 or args.seed < 0:
        print("--count must be at least 1, --side 32 and --seed 0", file=sys.stderr)
        return 2
    out, seeds = Path(args.out), range(args.seed, args.seed + args.count)
    recipe = Recipe(config=config, assets=args.assets)
    try:
        licences = "CC0-1.0" if args.assets is None else " AND ".join(licences_in(args.assets))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if args.format == "records":
        options = PipelineOptions(["--runner=DirectRunner", *beam_arguments])
        try:
            write_dataset(_contents(seeds, recipe), DatasetFacts(licence=licences), epath.Path(out), options)
        except FileExistsError as error:
            print(error, file=sys.stderr)
            return 2
        return 0
    if out.exists() and any(out.iterdir()):
        print(f"{out} is not empty: take another folder", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    for seed in track(seeds, description="scenes"):
        _write_one(recipe.scene(seed, args.split), args.format, out / f"scene_{seed:08d}")
    return 0


def _contents(seeds: range, recipe: Recipe) -> Contents:
    """The scenes in splits of consecutive seeds, each of assets of its own."""
    splits, start = {}, 0
    for split, share in SHARES.items():
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
    told = {"source": record.source, "licence": record.licence, "category": record.category}
    path.with_suffix(".json").write_text(json.dumps(told) + "\n")


if __name__ == "__main__":
    sys.exit(main())
