"""Compile what docs/pods.md shows and write its tables; nothing runs, and no accelerator is needed.

python tools/pods [--only TEXT]    compiles what is new or changed, and writes the tables
python tools/pods --check          returns 2 if the page does not hold the figures of docs/pods.json
"""

from qil_jax.command_line import Parser
from qil_jax.extras import require
from qil_jax.planning.devices import prepare_environment
from qil_jax.programs import run_main


def main(argv: list[str]) -> int:
    """Write the tables, or compare them with what is there."""
    parser = Parser(prog="tools/pods", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="compile and write nothing, only compare with docs/pods.json"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="compile only the programs whose name contains this")
    arguments = parser.parse_args(argv)
    if not arguments.check:
        require("tools/pods", "libtpu")
    prepare_environment()
    from tools.pods.pages import check_page, write_page  # heavy, so deferred until the arguments are valid

    if arguments.check:
        check_page()
    else:
        write_page(only=arguments.only)
    return 0


if __name__ == "__main__":
    run_main(main)
