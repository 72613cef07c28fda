"""Say whether a checkpoint or a LoRA file is sound; exit 0 only if it is.

qil validate CHECKPOINT                                   names, shapes, dtypes, sizes, configs
qil validate CHECKPOINT --values [--checksums FILE] [--against FILE]
                                                                      and every value: NaN, infinities, checksums
qil validate CHECKPOINT --numerics [--reference DIR]      and every block against PyTorch
qil validate LORA.safetensors [--base CHECKPOINT]         names, shapes, ranks, scales and every value
"""

import argparse
import os
from pathlib import Path

from qil_jax.command_line import Parser
from qil_jax.extras import require
from qil_jax.programs import called


def parsed(argv: list[str]) -> argparse.Namespace:
    """The command line; ends the program if it cannot be followed."""
    parser = Parser(prog=called("validate"), description=__doc__)
    parser.add_argument(
        "checkpoint", type=Path, help="folder that holds model_index.json, of either layout; or LoRA file"
    )
    parser.add_argument("--base", type=Path, help="checkpoint that the LoRA must fit (default: the released structure)")
    parser.add_argument("--values", action="store_true", help="also read every tensor: no NaN, no infinite value")
    parser.add_argument("--checksums", type=Path, metavar="FILE", help="--values, and write a checksum per tensor")
    parser.add_argument("--against", type=Path, metavar="FILE", help="--values, and compare with such a file")
    parser.add_argument("--numerics", action="store_true", help="also run every block through PyTorch and through ours")
    parser.add_argument(
        "--reference", type=Path, help="released folder whose weights PyTorch runs; CHECKPOINT otherwise"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest relative error of a block (default %(default)g)"
    )
    arguments = parser.parse_args(argv)
    if arguments.checksums is not None and os.path.lexists(arguments.checksums):
        parser.error(f"{arguments.checksums} exists: give another file, or remove it")
    if arguments.checkpoint.is_dir() and arguments.base is not None:
        parser.error("--base is for a LoRA file")
    of_checkpoints = ("values", "checksums", "against", "numerics", "reference")
    said = [f"--{name}" for name in of_checkpoints if getattr(arguments, name)]
    if is_lora(arguments) and said:
        parser.error(f"{', '.join(said)}: for checkpoints; a LoRA file is always read whole")
    if arguments.numerics:
        require(called("validate --numerics"), "torch", "diffusers", "transformers", "accelerate")
    return arguments


def is_lora(arguments: argparse.Namespace) -> bool:
    """Whether a LoRA file is to be checked, not a checkpoint's folder."""
    return arguments.checkpoint.is_file() or arguments.base is not None


def main(argv: list[str]) -> int:
    """Check; returns 0 for what is sound, 1 for what is not."""
    arguments = parsed(argv)  # the rest is heavy, so deferred until the arguments are valid
    if is_lora(arguments):
        from qil_jax.cli.validate_lora import validate_lora

        return validate_lora(arguments.checkpoint, arguments.base)
    from qil_jax.cli.validate_checkpoint import validate

    return validate(arguments)
