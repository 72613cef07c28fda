"""Which answers clients listen to. This module imports nothing heavy."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Streams:
    """The streams that clients have open, by the numbers of their calls or of their sessions.

    One thread, the server's, opens and closes them; any may ask.

    Attributes:
      patience: seconds from the start of a call until somebody must listen to it.
      haste: the same where the queue is full, and other calls come.
    """

    patience, haste = 10.0, 1.0

    def __init__(self):
        self._open = Counter[str]()

    @contextmanager
    def opened(self, name: str) -> Iterator[None]:
        """A client listens to a call or a session within the block."""
        self._open[name] += 1
        try:
            yield
        finally:
            self._open[name] -= 1
            self._open += Counter()  # what nobody listens to goes

    def any(self, names: Iterable[str]) -> bool:
        """Whether a client listens to one of these."""
        return any(name in self._open for name in names)
