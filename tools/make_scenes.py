"""Make layered scenes from seeds: a dataset of records, Photoshop documents, or folders of PNGs (docs/data.md).

python tools/make_scenes.py --count 10000 --out FOLDER [--side 128] [--format records|psd|folders] [--seed 0]
"""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from etils import epath
from rich.progress import track

from qil_jax.data.dataset import Contents, DatasetFacts, write_dataset
from qil_jax.data.records import encode
from qil_jax.data.scenes import SceneConfig, make_scene
from qil_jax.export.psd import write_psd

SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--count", type=int, required=True, help="of scenes, all splits together")
    parse.add_argument("--out", required=True, help="folder to write")
    parse.add_argument("--side", type=int, default=SceneConfig.side, help="of the canvas in pixels, 32 at least")
    parse.add_argument("--seed", type=int, default=0, help="of the first scene; the next have the next seeds")
    parse.add_argument("--format", choices=("records", "psd", "folders"), default="records")
    return parse


def example(seed: int, side: int) -> dict[str, Any]:
    """The scene of a seed as a flat example."""
    return encode(make_scene(seed, SceneConfig(side=side)))


def main(arguments: list[str] | None = None) -> int:
    """Write the scenes; 0 if all went well."""
    args, beam_arguments = parser().parse_known_args(arguments)
    if args.count < 1 or args.side < 32 or args.seed < 0:
        print("--count must be at least 1, --side 32 and --seed 0", file=sys.stderr)
        return 2
    out, seeds = Path(args.out), range(args.seed, args.seed + args.count)
    if args.format == "records":
        options = PipelineOptions(["--runner=DirectRunner", *beam_arguments])
        try:
            write_dataset(_contents(seeds, args.side), DatasetFacts(licence="CC0-1.0"), epath.Path(out), options)
        except FileExistsError as error:
            print(error, file=sys.stderr)
            return 2
        return 0
    if out.exists() and any(out.iterdir()):
        print(f"{out} is not empty: take another folder", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    for seed in track(seeds, description="scenes"):
        _write_one(seed, args.side, args.format, out / f"scene_{seed:08d}")
    return 0


def _contents(seeds: range, side: int) -> Contents:
    """The scenes in splits of consecutive seeds."""
    splits, start = {}, 0
    for split, share in SHARES.items():
        stop = len(seeds) if split == "test" else start + round(share * len(seeds))
        splits[split] = [(f"{seed:08d}", (seed,)) for seed in seeds[start:stop]]
        start = stop
    return Contents(splits=splits, make=functools.partial(example, side=side))


def _write_one(seed: int, side: int, form: str, path: Path) -> None:
    record = make_scene(seed, SceneConfig(side=side))
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
