"""Encode a dataset once, so that training need not: latents of all pictures, states of all captions (docs/training.md).

qil cache-latents RECORDS [...] --checkpoint FOLDER [--vae FOLDER] --out FOLDER --config CONFIG

Sizes, buckets and layers are those of the config's loader. An interrupted run continues where it stopped.
"""

from pathlib import Path

from qil_jax.command_line import Parser
from qil_jax.errors import ProblemsError
from qil_jax.programs import called
from qil_jax.records.splits import SPLITS


def parser() -> Parser:
    """The command line."""
    parse = Parser(prog=called("cache-latents"), description=__doc__)
    add = parse.add_argument
    add("records", nargs="+", help="datasets, or folders of PNGs")
    add("--checkpoint", type=Path, required=True, help="gives text encoder, tokenizer and RGBA-VAE")
    add("--vae", type=Path, help="gives the RGBA-VAE instead")
    add("--out", type=Path, required=True, help="folder of the latents")
    add("--config", type=Path, required=True, help="config of the stage that will read them: a file, or a preset")
    add("--splits", default=",".join(SPLITS), help="those to encode (default %(default)s)")
    add("--mesh", default="", help="such as data=8 (default: one device)")
    add("--rows", type=int, default=64, help="pictures or captions at a time (default %(default)s)")
    return parse


def main(argv: list[str]) -> int:
    """Encode what the command line names; returns 0.

    Raises:
      ProblemsError: listing what is wrong with the command line.
    """
    arguments = parser().parse_args(argv)
    splits = arguments.splits.split(",")
    problems = [f"--splits: '{split}' is none of {', '.join(SPLITS)}" for split in splits if split not in SPLITS]
    if arguments.rows < 1:
        problems.append(f"--rows must be at least 1, got {arguments.rows}")
    if problems:
        raise ProblemsError("cannot start", problems)
    from qil_jax.training.latent_cache import cache

    cache(arguments, splits)
    return 0
