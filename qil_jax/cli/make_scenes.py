"""Make layered scenes from seeds: a dataset of records, Photoshop documents, or folders of PNGs (docs/data.md).

qil make-scenes --count 10000 --out FOLDER [--preset rich|simple|grouped|varied|design|photo]
                            [--side 128] [--seed 0] [--format records|psd|folders] [--assets FOLDER]
                            [-- Apache Beam's own options]
"""

import dataclasses
from pathlib import Path
from typing import Annotated

from qil_jax.command_line import Parser, at_dashes
from qil_jax.errors import ProblemsError
from qil_jax.extras import require
from qil_jax.programs import called
from qil_jax.records.splits import SPLITS

NEEDS = ("tensorflow_datasets", "apache_beam")
PRESETS = ("rich", "simple", "grouped", "varied", "design", "photo")


def parser() -> Parser:
    """The command line."""
    parse = Parser(prog=called("make-scenes"), description=__doc__, elsewhere="; options of Apache Beam go behind --")
    add = parse.add_argument
    add("--count", type=int, required=True, help="number of scenes, all splits together")
    add("--out", type=Path, required=True, help="folder to write")
    few = (
        "simple: few large opaque things; grouped: the same, merged; varied: in many forms; design: with text, shadows "
        "and some photographs; photo: mostly on photographs (default %(default)s)"
    )
    add("--preset", choices=PRESETS, default="rich", help=few)
    add("--side", type=int, help="side of the canvas in pixels, 32 at least (default: the preset's)")
    add("--seed", type=int, default=0, help="seed of the first scene, counted up from there (default 0)")
    shapes = "a dataset, a Photoshop document each, or a folder of PNGs each (default %(default)s)"
    add("--format", choices=("records", "psd", "folders"), default="records", help=shapes)
    add("--assets", type=Path, help="what qil fetch-assets filled; else all is drawn")
    add(
        "--split",
        choices=tuple(SPLITS),
        default="train",
        help="of the assets, for psd and folders (default %(default)s)",
    )
    return parse


def main(argv: list[str]) -> int:
    """Write the scenes; returns 0.

    Raises:
      ProblemsError: listing what is wrong with the command line.
    """
    own, for_beam = at_dashes(argv)
    args = parser().parse_args(own)
    require(called("make-scenes"), *NEEDS)
    from annotated_types import Interval

    from qil_jax.options import value_problems

    problems = [
        problem
        for name, least, most in (("count", 1, 10**9), ("side", 32, 16384), ("seed", 0, 10**18))
        if getattr(args, name) is not None
        for problem in value_problems(f"--{name}", getattr(args, name), Annotated[int, Interval(ge=least, le=most)])
    ]
    if for_beam and args.format != "records":
        problems.append(f"--format {args.format} takes no options of Apache Beam: leave out {' '.join(for_beam)}")
    if problems:
        raise ProblemsError("cannot start", problems)
    from qil_jax.scenes.scene_files import PRESETS as CONFIGS
    from qil_jax.scenes.scene_files import Recipe, write_scenes

    config = CONFIGS[args.preset]
    config = config if args.side is None else dataclasses.replace(config, side=args.side)
    write_scenes(
        args.out,
        range(args.seed, args.seed + args.count),
        Recipe(config=config, assets=args.assets),
        form=args.format,
        split=args.split,
        for_beam=for_beam,
    )
    return 0
