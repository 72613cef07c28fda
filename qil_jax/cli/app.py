"""The app: pictures into layers in the browser, and by HTTP (docs/app.md).

qil app                                      the model that comes with the package, on this machine alone
qil app --checkpoint Qwen-Image-Layered      the released model
qil app --schema                             prints the schema of the HTTP API
"""

import json
import re
import signal
from pathlib import Path
from typing import Annotated

from qil_jax.app.limits import Limits
from qil_jax.command_line import Parser
from qil_jax.errors import ProblemsError, say
from qil_jax.extras import require
from qil_jax.programs import called

LOCAL = ("127.0.0.1", "localhost", "::1")
ROOT_PATH = re.compile(r"(https?://[^\s/]+)?(/[\w.~-]+)+|https?://[^\s/]+", re.IGNORECASE)
CLONE = Path(__file__).resolve().parents[2]
"""The repository, where the package is not installed from a wheel."""


def examples() -> list[Path]:
    """Pictures to try, which a clone has."""
    return sorted((CLONE / "examples").glob("*.png")) if (CLONE / "pyproject.toml").is_file() else []


def parser() -> Parser:
    """The command line."""
    parse, limits = Parser(prog=called("app"), description=__doc__), Limits()
    add = parse.add_argument
    add("--checkpoint", type=Path, help="folder of the released layout, or converted to orbax (default: a small model)")
    add("--host", default="127.0.0.1", help="address to serve on; 0.0.0.0: all, for everybody (default %(default)s)")
    add("--port", type=int, default=7860, help="port to serve on (default %(default)s)")
    add("--max-pixels", type=int, default=limits.pixels, help="pixels of an upload (default %(default)s)")
    add("--max-megabytes", type=int, default=limits.megabytes, help="size of an upload (default %(default)s)")
    add("--queue", type=int, default=limits.queue, help="calls that wait; more are refused (default %(default)s)")
    add("--keep-minutes", type=int, default=limits.minutes, help="how long results are kept (default %(default)s)")
    add("--disk-megabytes", type=int, default=limits.disk, help="uploads and results together (default %(default)s)")
    add("--max-work", type=int, default=limits.work, help="work of a call, in usual calls (default %(default)s)")
    most = limits.layer_pixels
    add("--max-layer-pixels", type=int, default=most, help="pixels of a result's layers together (default %(default)s)")
    add("--root-path", metavar="PATH", help="path or address at which a proxy shows the app, such as /layers")
    add("--work", type=Path, metavar="DIR", help="where uploads and results lie until the end (default: temporary)")
    add("--schema", action="store_true", help="print the JSON schema of the HTTP API and end")
    return parse


def main(argv: list[str]) -> int:
    """Serve until interrupted, or print the schema; returns 0.

    Raises:
      ProblemsError: listing what is wrong with the command line.
    """
    args = parser().parse_args(argv)
    require(called("app"), "gradio")
    from annotated_types import Interval

    from qil_jax.options import value_problems

    limits = Limits(
        pixels=args.max_pixels,
        megabytes=args.max_megabytes,
        queue=args.queue,
        minutes=args.keep_minutes,
        disk=args.disk_megabytes,
        work=args.max_work,
        layer_pixels=args.max_layer_pixels,
    )
    problems = [*limits.problems(), *value_problems("--port", args.port, Annotated[int, Interval(ge=1, le=65535)])]
    if args.root_path is not None and not ROOT_PATH.fullmatch(args.root_path):
        problems.append(f"--root-path must be a path such as /layers or an http(s) address, got {args.root_path!r}")
    if problems:
        raise ProblemsError("cannot start", problems)
    from qil_jax.app.server import require_address, serve, work_folder

    if not args.schema:
        require_address(args.host, args.port)
    if args.host not in LOCAL:
        say(f"warning: {args.host}: whoever reaches port {args.port} may use the app; there is no password")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the work folder goes
    with work_folder(args.work) as folder:
        from qil_jax.app.start import loaded, schema

        if args.schema:
            say(json.dumps(schema(limits, folder), indent=2))
            return 0
        served = loaded(args.checkpoint, limits, folder, examples=examples())
        serve(served, host=args.host, port=args.port, root_path=args.root_path)
    return 0
