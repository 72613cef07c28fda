"""How parameters are named: by their path in a module, joined by slashes; by dots where files are called after them."""

from collections.abc import Iterable
from typing import Any


def slashed(path: Iterable[Any]) -> str:
    """The name of a parameter from its path in a flat nnx state, such as backbone/blocks/image/q/kernel."""
    return "/".join(map(str, path))


def dotted(name: str) -> str:
    """The name of a parameter as orbax calls its folder."""
    return name.replace("/", ".")
