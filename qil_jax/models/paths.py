"""Names of parameters: their path in the module joined by slashes, or by dots in file names."""

from collections.abc import Iterable
from typing import Any


def slashed(path: Iterable[Any]) -> str:
    """The name of a parameter from its path in a flat nnx state, such as backbone/blocks/image/q/kernel."""
    return "/".join(map(str, path))


def dotted(name: str) -> str:
    """The name of the folder in which orbax stores a parameter."""
    return name.replace("/", ".")
