"""Programs of tools/ that have become commands of `qil`. Their old files answer with the new name, for this release."""

import sys
from typing import NoReturn

from qil_jax.errors import complain
from qil_jax.programs import UNUSABLE, called


def moved(verb: str) -> NoReturn:
    """Say which command took the place of the program that was called, and exit with status 2."""
    complain(f"error: tools/{verb.replace('-', '_')}.py has become a command: {called(verb)}")
    sys.exit(UNUSABLE)
