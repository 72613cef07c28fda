"""The errors that the package raises for unusable input: their message names the problem, its place, and the fix.

Programs catch `QilError` and `OSError` and exit with a one-line message; any other exception is a bug and keeps its
traceback.
"""

from collections.abc import Iterable

SHOWN = 40
"""Maximum number of problems that a message lists; further problems are only counted."""


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
