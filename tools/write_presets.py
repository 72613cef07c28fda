"""Write the tables of docs/training.md that follow from configs/released: presets, and shardings of all parameters.

python tools/write_presets.py            writes the tables
python tools/write_presets.py --check    returns 2 if the page does not hold them
"""

from qil_jax.command_line import Parser
from qil_jax.errors import QilError
from qil_jax.programs import run_main


def main(argv: list[str]) -> int:
    """Write the tables, or compare them with what is there."""
    parser = Parser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    arguments = parser.parse_args(argv)
    from tools.presets import PAGE, page  # heavy, so deferred until the arguments are valid

    text = page()
    if not arguments.check:
        PAGE.write_text(text, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text:
        raise QilError(f"docs/{PAGE.name} does not hold the tables of now: run python tools/write_presets.py")
    return 0


if __name__ == "__main__":
    run_main(main)
