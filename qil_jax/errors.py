"""The errors that the package raises for unusable input: their message names the problem, its place, and the fix.

Programs catch `QilError` and `OSError` and exit with a one-line message; any other exception is a bug and keeps its
traceback.
"""

import sys
from collections.abc import Iterable

SHOWN = 40
"""Maximum number of problems that a message lists; further problems are only counted."""


MOST = 60
"""Maximum length of a value that a message repeats."""


def cut(text: str) -> str:
    """A text for a message, which may be any user's: at most its first `MOST` characters."""
    return text if len(text) <= MOST else f"{text[:MOST]}..."


def shown(value: object) -> str:
    """The beginning of a value's representation, for messages."""
    try:
        return cut(repr(value))
    except ValueError:  # an integer of more digits than Python converts
        return f"{type(value).__name__} of thousands of digits"


def counted(count: int, noun: str) -> str:
    """A number of things in words: 1 record, 2 records."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def printable(text: str, *, kept: str = "") -> str:
    r"""A text whose characters that do not print are escaped, as \\x1b is, but for those `kept`.

    Those are control codes, which a terminal would follow, marks that turn the direction of writing, and halves of
    surrogate pairs, which no encoding has.
    """
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def halved(text: str) -> str:
    """The first half of a surrogate pair in a text, escaped; empty if there is none, and any encoding can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return printable(text[error.start])
    return ""


def message(text: object) -> str:
    """A message of several lines as it is printed."""
    return printable(str(text), kept="\n")


def say(text: object) -> None:
    """Print a message at once. All lines of programs come from here, from `complain`, or from tables."""
    print(message(text), flush=True)


def complain(text: object) -> None:
    """Print a message on the standard error."""
    print(message(text), file=sys.stderr, flush=True)


class QilError(ValueError):
    """An input cannot be used. The message names the input and the fix."""


class ProblemsError(QilError):
    """Several inputs cannot be used; the message lists all of them.

    Attributes:
      problems: one sentence for each problem.
    """

    def __init__(self, heading: str, problems: Iterable[str]):
        """`heading` is the first line of the message, without its colon."""
        self.problems = tuple(problems)
        rest = len(self.problems) - SHOWN
        shown = [*self.problems[:SHOWN], *([f"... and {rest} more"] if rest > 0 else [])]
        super().__init__(f"{heading}:\n  " + "\n  ".join(shown))
