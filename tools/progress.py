"""Progress of a program: a bar on a terminal, otherwise a line for every tenth of the work."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import track

Item = TypeVar("Item")


def shown(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield the items and report how many of `total` have passed."""
    if sys.stdout.isatty():
        yield from track(items, description=what, total=total)
        return
    for done, item in enumerate(items, start=1):
        yield item
        if done == total or done % max(1, total // 10) == 0:
            print(f"{what}: {done}/{total}", flush=True)
