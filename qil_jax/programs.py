"""Exit statuses of programs, and immediate handling of Ctrl-C while compiled code runs."""

import io
import logging
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NoReturn, TypeVar

from qil_jax.accelerators import quieten_libtpu
from qil_jax.errors import QilError, complain

UNUSABLE = 2
"""Exit status after unusable input or an operating-system error."""
HUNG = 75
"""Exit status after a hang: the same command goes on (EX_TEMPFAIL of sysexits.h)."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, by the convention of shells."""
QIL = "qil"
"""The name of the installed command."""
MODULES = ("qil_jax/__main__.py", "qil_jax/cli/__main__.py")
"""The ends of the paths of the modules that are the same command."""
Value = TypeVar("Value")


def interruptible(work: Callable[[], Value]) -> Value:
    """Run `work()` in a separate thread and return its value.

    Python handles Ctrl-C only between two bytecode instructions of the main thread, so a compiled loop would delay it.

    Raises:
      KeyboardInterrupt: on Ctrl-C, immediately; the work continues until the process ends, see `leave`.
    """
    future: Future[Value] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result()


def ended(main: Callable[[list[str]], int], argv: list[str]) -> int:
    """The exit status of `main(argv)`; a QilError, an OSError or Ctrl-C is reported in one line."""
    try:
        return main(argv)
    except KeyboardInterrupt:
        complain(f"\nstopped; to go on: {command(argv)}")
        return INTERRUPTED
    except QilError as error:
        complain(f"error: {error}")
        return UNUSABLE
    except OSError as error:
        complain(f"error: {error}; to go on: {command(argv)}")
        return UNUSABLE


def run_main(main: Callable[[list[str]], int], argv: list[str] | None = None) -> NoReturn:
    """Run `main` on arguments, by default those of the command line, and exit with its status."""
    quieten_libtpu()
    escape_streams()
    leave(ended(main, sys.argv[1:] if argv is None else argv))


def escape_streams() -> None:
    """Let the standard streams escape what their encoding lacks, such as a Chinese name where it is Latin-1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def leave(status: int) -> NoReturn:
    """End the process; after a failure, wait neither for threads that still compute nor for other processes."""
    if status == 0:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def called(words: str) -> str:
    """A command of `qil`, such as "convert quantize", as the reader can type it, for messages and usages.

    That is `qil ...` where it is on the PATH or is this program, and `python -m qil_jax ...` elsewhere.
    """
    there = Path(sys.argv[0]).name == QIL or shutil.which(QIL) is not None
    return f"{QIL if there else 'python -m qil_jax'} {words}"


def typed(line: str) -> str:
    """A command line of a config or a page as the reader can type it: one of `qil` by `called`, others as they are."""
    return called(line.removeprefix(f"{QIL} ")) if line.startswith(f"{QIL} ") else line


def command(argv: Sequence[str]) -> str:
    """The shell command that runs this program again with the same arguments, without those that name a verb."""
    program, *words = sys.argv
    name = Path(program).name
    if words and (name == QIL or program.endswith(MODULES)):
        return called(shlex.join([words[0], *argv]))
    begin = ["python", os.path.relpath(program)] if program.endswith(".py") else [name]
    return shlex.join([*begin, *argv])


def quieten_orbax() -> None:
    """Silence orbax's warnings, of a merge in which nothing is merged."""
    logging.getLogger("absl").setLevel(logging.ERROR)
