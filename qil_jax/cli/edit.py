"""Edit the layers of a decomposition by a script (docs/layers.md).

qil edit FOLDER                                      lists the layers
qil edit FOLDER --script ops.json --out FOLDER       writes the edited layers, in the form of FOLDER
qil edit --schema                                    prints the JSON schema of scripts
"""

import argparse
import dataclasses
import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qil_jax.command_line import Parser
from qil_jax.errors import ProblemsError, QilError, say
from qil_jax.programs import called

if TYPE_CHECKING:
    from qil_jax.editing.stack import Stack
    from qil_jax.layers.layered_image import LayeredImage


def parser() -> Parser:
    """The command line."""
    parse = Parser(prog=called("edit"), description=__doc__)
    add = parse.add_argument
    add("folder", nargs="?", type=Path, help="a result of `qil decompose`, or a folder of PNGs numbered bottom to top")
    add("--script", type=Path, help="JSON list of operations")
    add("--out", type=Path, help="new folder of the edited layers")
    add("--until", type=int, metavar="N", help="carry out the first N operations only; all are checked")
    add("--schema", action="store_true", help="print the JSON schema of scripts")
    return parse


def main(argv: list[str]) -> int:
    """Edit, list the layers, or print the schema; returns 0.

    Raises:
      QilError: if --until is no number of operations.
    """
    args = parser().parse_args(argv)
    from qil_jax.editing import script

    if args.schema:
        say(json.dumps(script.schema(), indent=2))
        return 0
    require_complete(args)
    from qil_jax.export.stored import read_tree
    from qil_jax.layers.profiles import SRGB

    layered = read_tree(args.folder).layered.with_profile(SRGB)
    from qil_jax.editing.stack import Stack
    from qil_jax.files import read_file
    from qil_jax.strict_json import MOST_BYTES

    stack = Stack.of(layered)
    if args.script is None:
        show(stack)
        return 0
    text = read_file(args.script, most=MOST_BYTES)
    operations = script.parse(text, stack, folder=args.script.parent, name=str(args.script))
    count = len(operations) if args.until is None else args.until
    if not 0 <= count <= len(operations):
        raise QilError(f"--until {count}: the script has {len(operations)} operations")
    from qil_jax.progress import shown

    began = time.perf_counter()
    for after in shown(script.states(stack, operations[:count]), count, "operations"):
        stack = after
    seconds = time.perf_counter() - began
    write(args.out, args.folder, stack.to_layered_image(layered), json.loads(text)[:count])
    show(stack)
    say(f"wrote {args.out}: {count} operations in {seconds:.1f} s")
    return 0


def require_complete(args: argparse.Namespace) -> None:
    """Refuse command lines that do not go together.

    Raises:
      ProblemsError: listing what is wrong.
    """
    problems = []
    if args.folder is None:
        problems.append("give a folder of layers, or --schema")
    if (args.script is None) != (args.out is None):
        problems.append("--script and --out go together")
    if args.out is not None and os.path.lexists(args.out):
        problems.append(f"{args.out} exists: give --out a new folder")
    if args.until is not None and args.script is None:
        problems.append("--until needs --script")
    if problems:
        raise ProblemsError("cannot start", problems)


def write(out: Path, source: Path, layered: "LayeredImage", items: list[dict[str, Any]]) -> None:
    """Write edited layers as a folder of the same form as that from which they came; it says by which operations.

    Raises:
      FileExistsError: if the folder exists.
    """
    from qil_jax.export.edited import write_edited_result
    from qil_jax.export.result import RECORD, read_record
    from qil_jax.files import read_file

    before = read_record(source)
    if before is None:
        edits = tuple(f"edited: {json.dumps(item)}" for item in items)
        dataclasses.replace(layered, decisions=layered.decisions + edits).save(out)
        return
    kept = {name: value for name, value in before.items() if name not in ("files", "layers", "size")}
    sha256 = hashlib.sha256(read_file(source / RECORD)).hexdigest()
    edited = {"result": source.resolve().name, "result_sha256": sha256, "operations": items, "before": kept}
    write_edited_result(out, layered, {"edited": edited})


def show(stack: "Stack") -> None:
    """Print the layers from the top down: number, name, box and opacity."""
    from qil_jax.terminal import Table, console

    table = Table("layer", "name", "left, top", "size", "opacity", title=f"canvas {stack.size[0]}x{stack.size[1]}")
    for layer in reversed(stack.layers):
        left, top, right, bottom = layer.visible or (0, 0, 0, 0)
        place = (f"{left}, {top}", f"{right - left}x{bottom - top}") if layer.visible else ("", "empty")
        table.add_row(str(layer.number), layer.name, *place, f"{layer.opacity:g}")
    console().print(table)
