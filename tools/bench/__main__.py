"""Measure speed and memory on this machine; docs/benchmarks.md has the figures.

python tools/bench models [--case NAME]... [--write docs/benchmarks.md]     the models, against diffusers on torch
python tools/bench train [--write docs/benchmarks.md]                       a training step, against one of torch
python tools/bench optimisers CONFIG [--set NAME=VALUE]...                  Muon against AdamW: loss, rate, memory
python tools/bench caption [--write docs/benchmarks.md]                     captions, against transformers on torch
python tools/bench data [--write docs/benchmarks.md]                        the loader
python tools/bench convert                                                  conversion of weights, against cp
python tools/bench lora                                                     loading with a LoRA, against without
python tools/bench load                                                     loading onto 8 devices, against orbax
python tools/bench export                                                   export of a run's checkpoint, against cp
python tools/bench quantize                                                 quantisation: sizes, time, memory, errors
python tools/bench edit [--write docs/benchmarks.md]                        a script of 50 operations on 8 layers
python tools/bench refine --assets FOLDER [--write docs/layers.md]          layers at their picture's size
python tools/bench app [--minutes 10] [--clients 50]                        an honest client of the app among attackers
python tools/bench formats [--write docs/benchmarks.md]                     files of 8 layers, against psd-tools, zlib
"""

import argparse
import importlib
from pathlib import Path

from qil_jax.command_line import Parser
from qil_jax.extras import require
from qil_jax.programs import run_main
from tools.bench.caption import CASES as CAPTION_CASES
from tools.bench.cases import CASES, SIDES
from tools.bench.harness import add_write

TORCH = ("torch", "diffusers", "transformers")
NEEDS = {"models": TORCH, "train": TORCH, "caption": TORCH, "data": ("tensorflow_datasets", "apache_beam")}
NEEDS |= {"app": ("gradio",)}
"""Benchmark to the optional modules that it needs."""


def parser() -> Parser:
    """The command line. Each benchmark NAME is `measure(arguments)` of the module tools.bench.NAME."""
    parse = Parser(prog="tools/bench", description=__doc__)
    benchmarks = parse.add_subparsers(dest="benchmark", required=True, help="what is measured")

    models = benchmarks.add_parser("models", help="the models, against diffusers on torch")
    models.add_argument("--case", action="append", choices=CASES, help="measure this one (default: all)")
    models.add_argument("--repeats", type=int, default=7, help="runs of each side (default %(default)s)")
    models.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)
    models.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    add_write(models)

    train = benchmarks.add_parser("train", help="a training step, against one of torch")
    train.add_argument("--rows", type=int, default=32, help="samples in the batch (default %(default)s)")
    train.add_argument("--repeats", type=int, default=12, help="steps of each side (default %(default)s)")
    add_write(train)

    add_optimisers(benchmarks)

    caption = benchmarks.add_parser("caption", help="descriptions of pictures, against transformers on torch")
    caption.add_argument("--case", action="append", choices=CAPTION_CASES, help="measure this one (default: all)")
    caption.add_argument("--tokens", type=int, default=64, help="ids to write (default %(default)s)")
    caption.add_argument("--repeats", type=int, default=7, help="runs of each side (default %(default)s)")
    caption.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)
    caption.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    add_write(caption)

    data = benchmarks.add_parser("data", help="the loader, stage by stage")
    data.add_argument("--samples", type=int, default=48, help="scenes to load (default %(default)s)")
    add_write(data)

    convert = benchmarks.add_parser("convert", help="conversion of weights both ways, against cp")
    convert.add_argument("--blocks", type=int, default=3, help="transformer blocks, 0.68 GB each (default %(default)s)")
    convert.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    convert.add_argument("--repeats", type=int, default=3, help="runs of each direction (default %(default)s)")

    lora = benchmarks.add_parser("lora", help="loading of a transformer with a LoRA, against without")
    lora.add_argument("--blocks", type=int, default=2, help="transformer blocks, 0.68 GB each (default %(default)s)")
    lora.add_argument("--rank", type=int, default=64, help="rank of the LoRA (default %(default)s)")
    lora.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    lora.add_argument("--repeats", type=int, default=3, help="runs of each side (default %(default)s)")

    load = benchmarks.add_parser("load", help="loading of a sharded transformer onto 8 devices, against orbax")
    load.add_argument("--blocks", type=int, default=6, help="transformer blocks, 0.68 GB each (default %(default)s)")
    load.add_argument("--mesh", default="fsdp=8;tensor=8", help="meshes, separated by ; (default %(default)s)")
    load.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    load.add_argument("--repeats", type=int, default=3, help="runs of each side (default %(default)s)")
    load.add_argument("--only", help=argparse.SUPPRESS)

    export = benchmarks.add_parser("export", help="export of a run's checkpoint in bf16, against cp of the result")
    export.add_argument("--blocks", type=int, default=2, help="transformer blocks, 1.36 GB each (default %(default)s)")
    export.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    export.add_argument("--repeats", type=int, default=3, help="runs of each side (default %(default)s)")

    quantize = benchmarks.add_parser("quantize", help="quantisation to int8 and fp8: sizes, time, memory, errors")
    quantize.add_argument("--blocks", type=int, default=2, help="blocks, 0.68 GB each (default %(default)s)")
    quantize.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")

    app = benchmarks.add_parser("app", help="the app's memory, disk and waiting times under attack")
    app.add_argument("--minutes", type=float, default=10, help="how long (default %(default)g)")
    app.add_argument("--clients", type=int, default=50, help="of which one is honest (default %(default)s)")

    add_layers(benchmarks)
    return parse


def add_optimisers(benchmarks: "argparse._SubParsersAction[Parser]") -> None:
    """Add the comparison of optimisers."""
    parse = benchmarks.add_parser("optimisers", help="Muon against AdamW: validation loss, samples/s, memory")
    parse.add_argument("config", type=Path, help="config file of the runs, such as one of configs/demo")
    parse.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as for train.py")
    parse.add_argument("--steps", type=int, default=150, help="steps of each run (default %(default)s)")
    parse.add_argument("--adamw", type=float, default=8e-4, help="peak learning rate of AdamW (default %(default)s)")
    parse.add_argument("--muon", type=float, default=2e-3, help="peak learning rate of Muon (default %(default)s)")
    parse.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    add_write(parse)


def add_layers(benchmarks: "argparse._SubParsersAction[Parser]") -> None:
    """Add the benchmarks of what follows sampling."""
    edit = benchmarks.add_parser("edit", help="a script of 50 operations on 8 layers of 1024 x 1024 pixels")
    edit.add_argument("--repeats", type=int, default=5, help="replays (default %(default)s)")
    add_write(edit)

    refine = benchmarks.add_parser("refine", help="layers at the size of their picture, against interpolated ones")
    refine.add_argument("--assets", type=Path, help="what fetch_assets.py filled", default=Path("assets"))
    refine.add_argument("--count", type=int, default=200, help="scenes of the test split (default %(default)s)")
    refine.add_argument("--results", type=int, default=100, help="decomposed scenes (default %(default)s)")
    refine.add_argument("--only", help=argparse.SUPPRESS)
    add_write(refine)

    formats = benchmarks.add_parser("formats", help="files of 8 layers of 1024 x 1024, against psd-tools and zlib")
    formats.add_argument("--repeats", type=int, default=5, help="runs of each (default %(default)s)")
    formats.add_argument("--only", help=argparse.SUPPRESS)
    add_write(formats)


def main(argv: list[str]) -> int:
    """Measure and print a table; returns 1 if a result is wrong."""
    arguments = parser().parse_args(argv)
    require(f"tools/bench {arguments.benchmark}", *NEEDS.get(arguments.benchmark, ()))
    return importlib.import_module(f"tools.bench.{arguments.benchmark}").measure(arguments)


if __name__ == "__main__":
    run_main(main)
