"""Bounds and choices of what may be asked for, and the words in which anything else is refused."""

from enum import StrEnum

RESOLUTION = 640
"""The default bucket: pictures are resized to about this many pixels squared. The release also knows 1024."""
MULTIPLE = 32
"""Both sides of the model's picture are multiples of this many pixels."""
MAX_LAYERS = 20
"""Most layers seen in training (arXiv 2512.15603, section 4.2)."""
MAX_SEED = 2**32 - 1
"""jax.random.key takes 32 bits and would drop the rest."""


class Rescale(StrEnum):
    """What happens to the length of a guided velocity."""

    NONE = "none"
    NORM = "norm"  # each token's guided velocity gets the length of its conditional one


def integer_problems(name: str, value: object, *, least: int, most: int | None = None) -> list[str]:
    """What keeps a value from being an integer within bounds, in words; empty where nothing does."""
    if not isinstance(value, int) or isinstance(value, bool):
        return [f"{name} must be an integer, got {value!r}"]
    bounds = f"at least {least}" if most is None else f"from {least} to {most}"
    return [] if least <= value and (most is None or value <= most) else [f"{name} must be {bounds}, got {value}"]


def resolution_problems(name: str, value: object) -> list[str]:
    """What keeps a value from being a size bucket, in words; empty where nothing does."""
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= MULTIPLE and value % MULTIPLE == 0
    return [] if fits else [f"{name} must be a multiple of {MULTIPLE}, got {value!r}"]
