"""Write a page that shows the layers of results, and lets them be moved, reordered and saved (docs/layers.md).

qil view RESULT --out layers.html              one result: its viewer
qil view RESULTS --out gallery.html            a folder of results, or several: a gallery before the viewers
qil view RESULT --out layers.html --input FILE with the picture that was taken apart beside its layers

The page is one file that loads nothing from anywhere.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qil_jax.command_line import Parser
from qil_jax.errors import ProblemsError, say
from qil_jax.programs import called

if TYPE_CHECKING:
    from qil_jax.viewer.entry import Entry


def parser() -> Parser:
    """The command line."""
    parse = Parser(prog=called("view"), description=__doc__)
    add = parse.add_argument
    add(
        "results",
        nargs="+",
        type=Path,
        help="results of qil decompose, folders of them, or folders of layers as PNGs",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="new HTML file")
    add(
        "--input",
        type=Path,
        metavar="PATH",
        help="the picture that was taken apart, or the folder of the pictures; by default it is looked for beside the "
        "result and in the current folder, by the name and SHA-256 that the result recorded",
    )
    return parse


def main(argv: list[str]) -> int:
    """Write the page; returns 0.

    Raises:
      ProblemsError: listing what is wrong with the command line.
    """
    args = parser().parse_args(argv)
    require_complete(args)
    from qil_jax.files import whole_file
    from qil_jax.viewer.page import pieces
    from qil_jax.viewer.stored import result_folders

    folders = result_folders(args.results)
    if args.input is not None and not args.input.is_dir() and len(folders) > 1:
        raise ProblemsError("cannot start", [f"--input {args.input}: is one picture for {len(folders)} results"])
    with whole_file(args.out) as draft, draft.open("w", encoding="utf-8", newline="") as stream:
        for piece in pieces(entries(folders, args.input)):
            stream.write(piece)
    what = "result" if len(folders) == 1 else "results"
    say(f"wrote {args.out}: {len(folders)} {what}, {args.out.stat().st_size / 1e6:.1f} MB")
    return 0


def require_complete(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is read.

    Raises:
      ProblemsError: listing what is wrong.
    """
    problems = []
    if os.path.lexists(args.out):
        problems.append(f"{args.out} exists: give --out a new file")
    if args.out.suffix.lower() not in (".html", ".htm"):
        problems.append(f"{args.out}: give --out a name that ends in .html")
    if args.input is not None and not args.input.exists():
        problems.append(f"{args.input}: no such file or folder")
    if problems:
        raise ProblemsError("cannot start", problems)


def entries(folders: list[Path], picture: Path | None) -> Iterator["Entry"]:
    """The results one after the other, so that one at a time is in memory."""
    from qil_jax.progress import shown
    from qil_jax.viewer.stored import stored_entry

    given = [] if picture is None else [picture]
    read = (stored_entry(folder, given) for folder in folders)
    yield from shown(read, len(folders), "results") if len(folders) > 1 else read
