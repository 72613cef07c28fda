"""Progress of a program on a terminal; otherwise a line for every tenth of the work, or nothing for bytes."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
    track,
)

from qil_jax.errors import say

Item = TypeVar("Item")


def shown(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield the items and report how many of `total` have passed."""
    if sys.stdout.isatty():
        yield from track(items, description=what, total=total)
        return
    for done, item in enumerate(items, start=1):
        yield item
        if done == total or done % max(1, total // 10) == 0:
            say(f"{what}: {done}/{total}")


def byte_progress() -> Progress:
    """A bar of bytes on a terminal, and nothing otherwise."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), disable=not sys.stdout.isatty())
