"""Photoshop documents to a dataset of layered records, with a report of what was dropped and why (docs/data.md).

qil build-dataset SOURCE --out FOLDER [--min-psnr 40] [--min-stored-psnr 30]
qil build-dataset SOURCE --out FOLDER --runner DataflowRunner -- --project NAME [Beam's own options]
"""

import math

from qil_jax.command_line import Parser, at_dashes
from qil_jax.documents.limits import CleaningConfig, Merging, PSDLimits
from qil_jax.documents.sandbox import ProcessLimits
from qil_jax.errors import ProblemsError, QilError, halved
from qil_jax.extras import require
from qil_jax.programs import called, command

NEEDS = ("tensorflow_datasets", "apache_beam", "imagehash", "scipy", "openai")
NO_BEAM = "none"


def parser() -> Parser:
    """The command line."""
    parse = Parser(prog=called("build-dataset"), description=__doc__, elsewhere="; options of Apache Beam go behind --")
    add = parse.add_argument
    add("source", help="a folder (with subfolders), glob, bucket or file of .psd and .psb documents")
    add("--out", required=True, help="folder for the dataset, report.json and report.html")
    add("--runner", help="runner of Apache Beam (default: in this process); 'none' is a plain loop without Beam")
    layers, side, psnr = CleaningConfig.max_layers, CleaningConfig.min_side, PSDLimits.recomposition_psnr
    add("--max-layers", type=int, default=layers, help="most layers of a record; more are merged (default %(default)s)")
    depth = "merge layers of one depth, which never overlap, or none (default %(default)s)"
    add("--merge", type=Merging, choices=tuple(Merging), default=CleaningConfig.merging, help=depth)
    small = "least visible pixels of a layer; those with fewer join the one below (default %(default)s)"
    add("--min-layer-pixels", type=int, default=CleaningConfig.min_layer_pixels, help=small)
    add("--min-side", type=int, default=side, help="shortest side of a canvas, in pixels (default %(default)s)")
    add("--min-psnr", type=float, default=psnr, help="least PSNR of the layers' composite, in dB (default %(default)g)")
    stored = "least PSNR against the picture that a document stores, in dB (default %(default)g)"
    add("--min-stored-psnr", type=float, default=PSDLimits.stored_psnr, help=stored)
    seconds, memory = ProcessLimits.seconds, ProcessLimits.memory / 2**30
    add("--seconds", type=float, default=seconds, help="seconds of CPU time for a document (default %(default)g)")
    add("--memory-gib", type=float, default=memory, help="GiB of memory for a document (default %(default)g)")
    add("--caption-url", help="an OpenAI-compatible address; else captions are NAME.txt beside NAME.psd")
    add("--caption-model", default="Qwen/Qwen2.5-VL-7B-Instruct", help="name of the model there (default %(default)s)")
    add("--caption-prompt", metavar="FILE", help="file with the instruction that is sent with each picture")
    add("--caption-checkpoint", metavar="DIR", help="a checkpoint whose own model captions, on this machine")
    add("--caption-batch", type=int, default=8, help="pictures that it captions at once (default %(default)s)")
    add("--caption-mesh", default="", help='its devices, such as "data=8" (default: the first)')
    add("--licence", default="", help="licence of the documents, where NAME.json does not say")
    add("--source-name", default="", help="where the documents come from, likewise")
    return parse


def main(argv: list[str]) -> int:
    """Build the dataset; returns 0, or 1 if no document is kept.

    Raises:
      ProblemsError: listing what is wrong with the command line.
      QilError: if the disk fails; the message says how to go on.
    """
    own, for_beam = at_dashes(argv)
    args = parser().parse_args(own)
    stores = ["gcsfs"] if any(place.startswith("gs://") for place in (args.source, args.out)) else []
    require(called("build-dataset"), *NEEDS, *stores)
    problems = [
        f"--{name.replace('_', '-')} must be above 0, got {getattr(args, name)}"
        for name in ("max_layers", "min_layer_pixels", "min_side", "seconds", "memory_gib", "caption_batch")
        if not 0 < getattr(args, name) < math.inf
    ]
    problems += [
        f"{name} must be a finite number, got {value}"
        for name, value in (("--min-psnr", args.min_psnr), ("--min-stored-psnr", args.min_stored_psnr))
        if not math.isfinite(value)
    ]
    problems += [
        f"--{name.replace('_', '-')} has half of a surrogate pair, {half}: give text in UTF-8"
        for name in ("licence", "source_name", "caption_url", "caption_model")
        if (half := halved(getattr(args, name) or ""))
    ]
    if for_beam and args.runner == NO_BEAM:
        problems.append(f"--runner {NO_BEAM} takes no options of Apache Beam: leave out {' '.join(for_beam)}")
    if args.caption_checkpoint is not None and (args.caption_url or args.caption_prompt):
        problems.append("--caption-checkpoint goes with neither --caption-url nor --caption-prompt: leave one out")
    if problems:
        raise ProblemsError("cannot start", problems)
    from qil_jax.cli.build_documents import build, disk_error

    try:
        return build(args, for_beam)
    except QilError:
        raise
    except Exception as error:  # Beam wraps what its workers raise in errors of its own
        reason = disk_error(error)
        if reason is None:
            raise
        raise QilError(f"{reason}\ndocuments that are prepared stay so; to go on: {command(argv)}") from error
