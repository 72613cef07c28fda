"""Programs of the campaigns as calls in this process: to start them anew would be most of a small campaign's time."""

from tools.fuzz.commands import _called


def watched_here(words: list[str]) -> tuple[int, str, str]:
    """In place of `tools.fuzz.cases.watched`: an exception counts as a traceback."""
    status, printed = _called(words[0], words[1:])
    if isinstance(status, int):
        return status, printed, ""
    return 1, printed, f"{words[0]} ended in a traceback: {status}"
