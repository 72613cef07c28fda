"""Tables and lines on the standard output. Names in them are shown as they are, never followed as markup or codes."""

import sys

import rich.table
from rich.console import Console
from rich.text import Text

from qil_jax.errors import printable

WIDTH = 160
"""Columns of a table that is not written to a terminal."""


class Table(rich.table.Table):
    """A table whose cells are plain text."""

    def add_row(self, *cells: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Add a row; the cells are shown as they are, and no brackets in them are markup."""
        super().add_row(*(Text(printable(cell)) for cell in cells))


def console() -> Console:
    """The standard output, for tables and for lines without markup."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False)
