"""Measure a checkpoint, or layers made by other programs, on the records of a split (docs/evaluation.md).

qil evaluate layers RECORDS --checkpoint FOLDER --out FOLDER     decompositions, by the LayerD protocol
qil evaluate layers RECORDS --results FOLDER --out FOLDER        layers that are there already
qil evaluate reconstruction RECORDS --checkpoint FOLDER --out FOLDER     the RGBA-VAE alone, by AlphaVAE's
"""

import argparse
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Interval

from qil_jax.choices import MAX_LAYERS, MAX_SEED, Precision
from qil_jax.command_line import Parser, add_options, flag, one_of
from qil_jax.errors import ProblemsError, QilError, cut, say
from qil_jax.extras import require
from qil_jax.inference.defaults import Defaults, Resolution
from qil_jax.inference.request import PictureOptions, Settings
from qil_jax.options import problems_in, value_problems
from qil_jax.programs import called
from qil_jax.shipped import shipped_checkpoint

RESULTS = """a folder of layers that exist already: for each record a folder named by its number, counted from 0
(00000, 00001, ...; leading zeros do not matter), as qil decompose writes for pictures of these names, or with one PNG
per layer, numbered bottom to top (000.png, 001.png, ...); of the record's size, or of its bucket's at --resolution"""


def parser() -> Parser:
    """The command line."""
    parse = Parser(prog=called("evaluate"), description=__doc__)
    verbs = parse.add_subparsers(dest="verb", required=True, help="what is measured")
    common = Parser(add_help=False)
    add = common.add_argument
    add("records", help="a dataset, folders of PNGs, or LayerD's Crello (docs/data.md)")
    add("--out", type=Path, required=True, help="folder of the report; a run that was cut goes on in it")
    add("--split", default="test", help="(default test)")
    add("--dtype", **one_of(Precision), help="compute precision (default: as stored)")
    add("--mesh", default="", help='devices, such as "data=2,tensor=4" (default: the first device)')
    layers = verbs.add_parser("layers", parents=[common], help="decompositions, by the LayerD protocol")
    _add_layers(layers)
    reconstruction = verbs.add_parser(
        "reconstruction", parents=[common], help="the RGBA-VAE, by AlphaVAE's nine backgrounds"
    )
    add = reconstruction.add_argument
    add("--checkpoint", type=Path, help="its RGBA-VAE is measured, nothing else is loaded (default: the shipped model)")
    add("--count", type=int, default=500, help="layers, of the first records (default 500)")
    add("--size", type=int, help="bucket resolution (default: the records' own size, rounded down to 32)")
    add("--batch", type=int, default=8, help="layers at once (default 8)")
    add(
        "--lpips",
        type=Path,
        metavar="FILE",
        help="weights that qil convert-lpips wrote: adds LPIPS, and a Frechet distance of that backbone's "
        "mean-pooled last features, which is NOT the paper's rFID: that needs Inception's",
    )
    return parse


def _add_layers(parse: argparse.ArgumentParser) -> None:
    source = parse.add_mutually_exclusive_group()
    source.add_argument(
        "--checkpoint", type=Path, help="decomposes the records' composites (default: the shipped model)"
    )
    source.add_argument("--results", type=Path, metavar="FOLDER", help=RESULTS)
    add = parse.add_argument
    add("--count", type=int, default=200, help="the first records of the split (default 200)")
    add_options(add, PictureOptions, ("resolution",))
    add = parse.add_argument_group("how a checkpoint decomposes").add_argument
    add("--layers", default="true", metavar="true|N", help="as many as the truth has, or N (default true)")
    add("--captions", action="store_true", help="prompt with the records' captions (default: no prompt)")
    add_options(add, Settings, ("steps", "guidance"), guidance="without captions it changes nothing")
    add_options(add, PictureOptions, ("seed",), seed="each record adds its number")
    add("--batch", type=int, default=1, help="pictures at once (default 1)")


def complete(arguments: argparse.Namespace) -> None:
    """Complete the arguments: the shipped model if none is named, and the checkpoint's defaults for unset options.

    Raises:
      QilError: if the checkpoint's qil.json cannot be used.
    """
    if getattr(arguments, "results", None) is not None:
        defaults = Defaults()
    else:
        arguments.checkpoint = arguments.checkpoint or shipped_checkpoint()
        defaults = Defaults.of(arguments.checkpoint)
    for name in ("resolution", "steps", "guidance"):
        if getattr(arguments, name, 0) is None:
            setattr(arguments, name, getattr(defaults, name))
    if getattr(arguments, "seed", 0) is None:
        arguments.seed = PictureOptions.seed


def problems_of(arguments: argparse.Namespace) -> list[str]:
    """All problems of the command line, one sentence each."""
    from qil_jax.mesh import MeshShape

    found = []
    for name in ("count", "batch"):
        found += value_problems(f"--{name}", getattr(arguments, name), Annotated[int, Ge(1)])
    seeds = Interval(ge=0, le=MAX_SEED - arguments.count)
    found += value_problems("--seed", getattr(arguments, "seed", 0), Annotated[int, seeds])
    for cls, names in ((PictureOptions, ("resolution",)), (Settings, ("steps", "guidance"))):
        found += problems_in(cls, {name: getattr(arguments, name, None) for name in names}, flag)
    found += value_problems("--size", getattr(arguments, "size", None), Resolution | None)
    layers = getattr(arguments, "layers", "true")
    if layers != "true" and layers not in map(str, range(2, MAX_LAYERS + 1)):
        found.append(f"--layers must be 'true' or from 2 to {MAX_LAYERS}, got {cut(layers)}")
    for name in ("checkpoint", "results"):
        folder = getattr(arguments, name, None)
        if folder is not None and not folder.is_dir():
            found.append(f"--{name} {folder}: no such folder")
    try:
        MeshShape.parse(arguments.mesh)
    except QilError as error:
        found.append(f"--mesh {cut(arguments.mesh)}: {error}")
    return found


def run(arguments: argparse.Namespace) -> str:
    """Measure as the command line says, and return the text of the summary."""
    if arguments.verb == "reconstruction":
        from qil_jax.evaluation.measure_reconstruction import Reconstruction, score_reconstructions

        job = Reconstruction(
            records=arguments.records,
            split=arguments.split,
            out=arguments.out,
            checkpoint=arguments.checkpoint,
            count=arguments.count,
            size=arguments.size,
            batch=arguments.batch,
            lpips=arguments.lpips,
            dtype=arguments.dtype,
            mesh=arguments.mesh,
        )
        return score_reconstructions(job)
    from qil_jax.evaluation.measure_layers import Prompts, Sampling, Subset, score_results, score_sampled

    subset = Subset.open(arguments.records, arguments.split, count=arguments.count, resolution=arguments.resolution)
    if arguments.results is not None:
        return score_results(subset, arguments.results, arguments.out)
    sampling = Sampling(
        checkpoint=arguments.checkpoint,
        layers=None if arguments.layers == "true" else int(arguments.layers),
        prompts=Prompts.CAPTIONS if arguments.captions else Prompts.NONE,
        steps=arguments.steps,
        guidance=arguments.guidance,
        seed=arguments.seed,
        batch=arguments.batch,
        dtype=arguments.dtype,
        mesh=arguments.mesh,
    )
    return score_sampled(subset, sampling, arguments.out)


def main(argv: list[str]) -> int:
    """Measure and print the summary; returns 0.

    Raises:
      ProblemsError: listing what is wrong with the command line.
    """
    arguments = parser().parse_args(argv)
    require(called("evaluate"), "scipy")
    complete(arguments)
    problems = problems_of(arguments)
    if problems:
        raise ProblemsError("cannot start", problems)
    say(run(arguments))
    say(f"The report is in {arguments.out}")
    return 0
