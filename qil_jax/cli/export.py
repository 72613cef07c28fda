"""Export layers to a format of other programs (docs/layers.md).

qil export results/fox --to pptx             writes fox.pptx beside the folder results/fox
qil export results/* --to ora --out files    writes files/fox.ora and so on
qil export fox.psd --to png --out fox        a PSD, ORA, PPTX or ZIP file back to a folder of PNGs
qil export results/fox --to psd --picture fox.jpg     layers at the size of the picture, with its edges
"""

import argparse
import dataclasses
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from qil_jax.choices import Edges
from qil_jax.command_line import Parser, one_of
from qil_jax.errors import ProblemsError, QilError, printable, say
from qil_jax.export.format import Format
from qil_jax.extras import require
from qil_jax.programs import called

if TYPE_CHECKING:
    from qil_jax.layers.layer_tree import LayerTree


def parser() -> Parser:
    """The command line."""
    parse = Parser(prog=called("export"), description=__doc__)
    add = parse.add_argument
    add("sources", nargs="+", type=Path, metavar="RESULT", help="results, folders of PNGs, or files of these formats")
    add("--to", required=True, **one_of(Format), help="the format; png is a folder of PNGs with a manifest")
    add(
        "--out",
        type=Path,
        help="the new file or folder; for several results the folder of these (default: beside each)",
    )
    add(
        "--native-text", action="store_true", help="pptx: layers that are text become text boxes; needs the extra [ocr]"
    )
    add("--picture", type=Path, help="the larger picture that was decomposed: layers get its size and its edges")
    how = "with --picture: with the picture's edges, or interpolated"
    add("--edges", **one_of(Edges), help=f"{how} (default {Edges.REFINED})")
    add(
        "--hidden-masks",
        action="store_true",
        help="png, zip: NN_NAME.hidden.png beside each layer: where others hide it",
    )
    return parse


def main(argv: list[str]) -> int:
    """Export, and say what was written; returns 0.

    Raises:
      QilError: if a source has groups, and --hidden-masks was given.
    """
    args = parser().parse_args(argv)
    if args.native_text:
        require(called("export --native-text"), "rapidocr", "onnxruntime", "matplotlib")
    targets = targets_of(args)
    from qil_jax.export import formats

    for source, target in targets.items():
        tree = formats.read(source)
        if args.picture is not None:
            tree = enlarged(tree, args.picture, Edges(args.edges or Edges.REFINED))
        format = Format(args.to)
        if args.hidden_masks and tree.groups:
            raise QilError(f"{source}: has groups, and --hidden-masks is for plain stacks: leave the option out for it")
        formats.write(tree, target, format, native_text=args.native_text, hidden_masks=args.hidden_masks)
        say(f"wrote {target}: {len(tree.leaves().names)} layers")
        for decision in tree.layered.decisions:
            say(f"{source}: {decision}")
    return 0


def enlarged(tree: "LayerTree", path: Path, edges: Edges) -> "LayerTree":
    """A tree at the size and in the colour profile of the picture that it decomposes; its decisions say so.

    Raises:
      QilError: if the file is no picture or cannot be that picture, or the layers would not fit into memory.
    """
    import numpy as np

    from qil_jax.export.bounds import PIXEL_BYTES
    from qil_jax.host_memory import require_memory
    from qil_jax.layers.enlarging import open_picture, require_picture_of, tree_at_size

    picture = open_picture(path)
    size = picture.image.size
    require_picture_of(tree.layered.size, size, str(path))
    count = len(tree.leaves().names)
    what = f"{count} layers of the {size[0]}x{size[1]} pixels of {path}"
    require_memory(math.prod(size) * count * PIXEL_BYTES, what, "give a smaller picture")
    found, report = tree_at_size(tree.with_profile(picture.profile), np.asarray(picture.image), edges)
    how = "interpolated" if report is None else "refined"
    old, new = ("x".join(map(str, sides)) for sides in (tree.layered.size, size))
    said = f"{how} from {old} to the {new} pixels of {printable(path.name)}"
    decisions = (*found.layered.decisions, *picture.notes, said)
    layered = dataclasses.replace(found.layered, decisions=decisions)
    return dataclasses.replace(found, layered=layered)


def targets_of(args: argparse.Namespace) -> dict[Path, Path]:
    """What is written for each source.

    Raises:
      ProblemsError: listing what is missing, exists, or would be written twice.
    """
    end = "-png" if args.to == "png" else f".{args.to}"
    single = args.out is not None and len(args.sources) == 1 and not args.out.is_dir()
    targets = {}
    for source in args.sources:
        absolute = source.resolve()
        name = (absolute.name if source.is_dir() else absolute.stem) + end
        targets[source] = args.out if single else (args.out or absolute.parent) / name
    problems = [f"{source}: no such file or folder" for source in targets if not source.exists()]
    problems += [f"{target} exists: give --out another name" for target in targets.values() if os.path.lexists(target)]
    twice = {target for target in targets.values() if list(targets.values()).count(target) > 1}
    problems += [f"{target} would be written twice: export these results apart" for target in sorted(twice)]
    if args.out is not None and single and args.to != "png" and args.out.suffix.lower() != end:
        problems.append(f"--out {args.out}: its name must end with {end}")
    if args.native_text and args.to != "pptx":
        problems.append("--native-text goes with --to pptx")
    if args.picture is not None and len(args.sources) > 1:
        problems.append(f"--picture {args.picture}: is the picture of one result: export several apart")
    if args.edges is not None and args.picture is None:
        problems.append("--edges goes with --picture")
    if args.hidden_masks and args.to not in ("png", "zip"):
        problems.append("--hidden-masks goes with --to png or zip")
    if problems:
        raise ProblemsError("cannot start", problems)
    return targets
