"""Compile a program of the released model for accelerators that are not there, and say what it needs.

qil plan infer --topology v5e:2x4 --mesh cfg=2,tensor=4 --layers 4 --resolution 640
qil plan infer --topology v6e:2x4 --sweep --picture meshes.png
qil plan train --config released/finetune --topology v5p:4x4x4 --mesh fsdp=64

Nothing runs: no accelerator is needed, and no checkpoint. It prints whether the program fits and by how much, FLOPs,
bytes, collectives, and the time of a step that peak rates allow (docs/pods.md).
"""

import argparse
from pathlib import Path

from qil_jax.choices import AttentionKind, Passes, Quantisation, Spread, Weights
from qil_jax.command_line import Parser, one_of
from qil_jax.planning.chips import Topology
from qil_jax.planning.devices import prepare_environment, require_compiler
from qil_jax.programs import called

ATTENTION = [kind for kind in AttentionKind if kind is not AttentionKind.XLA_BY_HEAD]
"""The kernels of accelerators: all but the one that is for a single CPU."""


def parser() -> Parser:
    """The command line."""
    parse = Parser(prog=called("plan"), description=__doc__)
    programs = parse.add_subparsers(dest="program", required=True, help="what is planned")

    infer = programs.add_parser("infer", help="a step of the sampler")
    _add_common(infer)
    infer.add_argument("--transformer", type=Path, metavar="FILE", help="its config.json (default: the release's)")
    infer.add_argument("--layers", type=int, default=4, help="layers of a picture (default %(default)s)")
    infer.add_argument("--resolution", type=int, default=640, help="side of the pictures (default %(default)s)")
    infer.add_argument("--batch", type=int, default=1, help="pictures at a time (default %(default)s)")
    infer.add_argument("--text", type=int, default=512, help="text tokens of a prompt (default %(default)s)")
    infer.add_argument("--steps", type=int, default=50, help="steps of the sampler (default %(default)s)")
    infer.add_argument(
        "--guidance", action=argparse.BooleanOptionalAction, default=True, help="two passes a step, or one"
    )
    infer.add_argument("--passes", **one_of(Passes), default=Passes.BATCH, help="both at once, or in turn")
    infer.add_argument("--attention", **one_of(ATTENTION), help="its kernel (default: splash on TPUs, cudnn on GPUs)")
    infer.add_argument(
        "--spread", **one_of(Spread), default=Spread.ULYSSES, help="attention over --mesh context (default %(default)s)"
    )
    infer.add_argument(
        "--weights", **one_of(Weights), default=Weights.SPLIT, help="kernels over --mesh context (default %(default)s)"
    )
    infer.add_argument("--quantize", **one_of(Quantisation), help="kernels of one byte an element (default: bf16)")
    infer.add_argument("--keep-modulation", action="store_true", help="its parameters stay in device memory")
    infer.add_argument("--keep-text-encoder", action="store_true", help="its parameters stay in device memory")
    infer.add_argument("--sweep", action="store_true", help="all meshes of the topology, spreads and placements")
    infer.add_argument(
        "--cache", type=Path, default=Path("plans.json"), help="results of --sweep (default %(default)s)"
    )
    infer.add_argument("--picture", type=Path, help="draw the terms of all meshes of --sweep, a PNG")

    train = programs.add_parser("train", help="a step of training")
    _add_common(train)
    train.add_argument("--config", type=Path, required=True, help="a file, or a preset such as released/finetune")
    train.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of it")
    return parse


def _add_common(parse: argparse.ArgumentParser) -> None:
    parse.add_argument("--topology", required=True, help="slice, such as v5e:2x4, v6e:2x4, v5p:4x4x4 or h100:8")
    parse.add_argument("--mesh", help="sizes of its axes, such as cfg=2,tensor=4 (infer without --sweep needs it)")
    parse.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON, too")
    parse.add_argument(
        "--effort", type=float, default=0.0, help="of the compiler, -1 to 1; below 0 it is fast and tells memory only"
    )


def main(argv: list[str]) -> int:
    """Plan what the command line says; returns 0, also for a program that does not fit."""
    parse = parser()
    arguments = parse.parse_args(argv)
    if arguments.program == "infer" and (arguments.mesh is None) != arguments.sweep:
        parse.error("give --mesh, or --sweep for all meshes" if arguments.mesh is None else "--sweep takes no --mesh")
    require_compiler(Topology.parse(arguments.topology))
    prepare_environment()
    from qil_jax.cli.plan_step import run  # heavy, so deferred until the arguments are valid

    return run(arguments)
