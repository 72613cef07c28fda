"""The one installed command: `qil VERB ...`, or `python -m qil_jax VERB ...` where it is not on the PATH."""

import importlib
import sys
from collections.abc import Callable
from typing import NoReturn

from qil_jax.cli.commands import COMMANDS
from qil_jax.command_line import nearest
from qil_jax.errors import QilError, complain, cut, say
from qil_jax.programs import UNUSABLE, called, run_main


def main_of(verb: str) -> Callable[[list[str]], int]:
    """The function `main(argv)` of a verb; its module is imported.

    Raises:
      QilError: if there is no such verb; the message suggests the nearest one.
    """
    if verb not in COMMANDS:
        raise QilError(f"there is no command {cut(verb)!r}{nearest(verb, COMMANDS)}; {called('--help')} lists them")
    return importlib.import_module(f"qil_jax.cli.{COMMANDS[verb].module}").main


def usage() -> str:
    """What `qil --help` prints."""
    lines = [f"  {verb:15}{command.about}" for verb, command in COMMANDS.items()]
    begin = f"usage: {called('COMMAND ...')}\n\nPictures into editable RGBA layers, and all that this takes."
    return "\n".join([begin, "", "commands:", *lines, "", f"{called('COMMAND --help')} explains one."])


def dispatched(verb: str | None, argv: list[str]) -> int:
    """Print the help, or carry a verb out; returns the exit status, 2 if no verb was given."""
    if verb is None:
        complain(usage())
        return UNUSABLE
    if verb in ("-h", "--help"):
        say(usage())
        return 0
    return main_of(verb)(argv)


def program() -> NoReturn:
    """Run the command of the command line as a program."""
    verb, argv = next(iter(sys.argv[1:]), None), sys.argv[2:]
    run_main(lambda argv: dispatched(verb, argv), argv)


if __name__ == "__main__":
    program()
