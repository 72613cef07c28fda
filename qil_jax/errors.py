"""The errors that the package raises for what it was given: their message names what is wrong, where, and the fix.

Programs catch `QilError` and `OSError` and end with a line; any other exception is a fault of the code and keeps its
traceback.
"""

from collections.abc import Iterable

SHOWN = 40
"""Problems that a message lists; the others are counted."""


class QilError(ValueError):
    """Something that was given cannot be used. The message names it and says what to do."""


class ProblemsError(QilError):
    """Several things that were given cannot be used: all of them are listed together.

    Attributes:
      problems: one sentence each.
    """

    def __init__(self, heading: str, problems: Iterable[str]):
        """`heading`: the first line of the message, without its colon."""
        self.problems = tuple(problems)
        rest = len(self.problems) - SHOWN
        shown = [*self.problems[:SHOWN], *([f"... and {rest} more"] if rest > 0 else [])]
        super().__init__(f"{heading}:\n  " + "\n  ".join(shown))
