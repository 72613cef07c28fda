"""How a program ends: an interrupt is heard while compiled code runs, and ends the program at once."""

import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NoReturn, TypeVar

from qil_jax.errors import QilError

UNUSABLE = 2
"""Exit status where what was given, or the machine, does not do."""
INTERRUPTED = 130
"""Exit status of what Ctrl-C has ended, as shells have it."""
Value = TypeVar("Value")


def interruptible(work: Callable[[], Value]) -> Value:
    """The value of `work()`, which runs in a thread of its own.

    Python hears Ctrl-C between two steps of its main thread only, and a compiled loop of minutes is one step.

    Raises:
      KeyboardInterrupt: at once; the work goes on until the process ends, see `leave`.
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
    """The exit status of `main(argv)`; what it was given and cannot use, a failing disk and Ctrl-C become a line."""
    try:
        return main(argv)
    except KeyboardInterrupt:
        print(f"\nstopped; to go on: {command(argv)}", file=sys.stderr)
        return INTERRUPTED
    except QilError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    except OSError as error:
        print(f"error: {error}; to go on: {command(argv)}", file=sys.stderr)
        return UNUSABLE


def run_main(main: Callable[[list[str]], int]) -> NoReturn:
    """A program: `main` with the words of its command line."""
    leave(ended(main, sys.argv[1:]))


def leave(status: int) -> NoReturn:
    """End the process; after an interrupt without waiting for threads that still compute."""
    if status != INTERRUPTED:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def command(argv: Sequence[str]) -> str:
    """How this program was called, to be called so again."""
    program = sys.argv[0]
    called = ["python", os.path.relpath(program)] if program.endswith(".py") else [Path(program).name]
    return shlex.join([*called, *argv])
