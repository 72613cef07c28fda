"""Pictures and fonts for scenes, from public registries, checked against known hashes (docs/data.md).

qil fetch-assets --out FOLDER [NAME]... [--also LICENCE]... [--list]
"""

import collections
from pathlib import Path

from rich.console import Console

from qil_jax.command_line import Parser
from qil_jax.errors import QilError, complain, say
from qil_jax.extras import require
from qil_jax.programs import called
from qil_jax.scenes.assets import LIST, read_list
from qil_jax.scenes.packages import FREE, PACKAGES, FetchError, fetch


def parser() -> Parser:
    """The command line."""
    parse = Parser(prog=called("fetch-assets"), description=__doc__)
    parse.add_argument("names", nargs="*", help="names of packages (default: all)")
    parse.add_argument("--out", type=Path, help="folder to fill: a folder per package")
    parse.add_argument(
        "--also", action="append", default=[], metavar="LICENCE", help=f"besides {', '.join(sorted(FREE))}"
    )
    parse.add_argument("--list", action="store_true", help="say what there is, and stop")
    return parse


def main(argv: list[str]) -> int:
    """Fetch the packages; returns 0 if all are present at the end, 1 if not.

    Raises:
      QilError: if there is no such package, or no folder.
    """
    args = parser().parse_args(argv)
    known = {package.name: package for package in PACKAGES}
    if args.list:
        for package in PACKAGES:
            say(f"{package.name}   {package.licence}")
        return 0
    unknown = [name for name in args.names if name not in known]
    no_folder = args.out is not None and args.out.exists() and not args.out.is_dir()
    if unknown or args.out is None or no_folder:
        raise QilError(
            f"no package {', '.join(unknown)}: --list names them all" if unknown else "--out must name a folder"
        )
    names = args.names or [*known]
    for name in names:
        require(name, *known[name].needs)
    console, failed = Console(), 0
    for name in names:
        try:
            with console.status(name):
                folder = fetch(known[name], args.out, FREE | set(args.also))
        except FetchError as error:
            complain(error)
            failed += 1
            continue
        counts = collections.Counter((asset.kind.value, asset.licence) for asset in read_list(folder / LIST))
        say(f"{folder}: " + ", ".join(f"{n} {kind}s under {licence}" for (kind, licence), n in counts.items()))
    return 1 if failed else 0
