"""Export layers to a format of other programs (docs/layers.md).

python tools/export.py results/fox --to pptx             writes fox.pptx beside the folder results/fox
python tools/export.py results/* --to ora --out files    writes files/fox.ora and so on
python tools/export.py fox.psd --to png --out fox        a PSD, ORA, PPTX or ZIP file back to a folder of PNGs
"""

import argparse
import os
from pathlib import Path

from qil_jax.command_line import Parser
from qil_jax.errors import ProblemsError, say
from qil_jax.export.format import Format
from qil_jax.extras import require
from qil_jax.programs import run_main


def parser() -> Parser:
    """The command line."""
    parse = Parser(description=__doc__)
    add = parse.add_argument
    add("sources", nargs="+", type=Path, metavar="RESULT", help="results, folders of PNGs, or files of these formats")
    add("--to", required=True, choices=tuple(Format), help="the format; png is a folder of PNGs with a manifest")
    add(
        "--out",
        type=Path,
        help="the new file or folder; for several results the folder of these (default: beside each)",
    )
    add(
        "--native-text", action="store_true", help="pptx: layers that are text become text boxes; needs the extra [ocr]"
    )
    return parse


def main(argv: list[str]) -> int:
    """Export, and say what was written; returns 0."""
    args = parser().parse_args(argv)
    if args.native_text:
        require("export.py --native-text", "rapidocr", "onnxruntime", "matplotlib")
    targets = targets_of(args)
    from qil_jax.export import formats

    for source, target in targets.items():
        tree = formats.read(source)
        formats.write(tree, target, Format(args.to), native_text=args.native_text)
        say(f"wrote {target}: {len(tree.leaves().names)} layers")
        for decision in tree.layered.decisions:
            say(f"{source}: {decision}")
    return 0


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
    if problems:
        raise ProblemsError("cannot start", problems)
    return targets


if __name__ == "__main__":
    run_main(main)
