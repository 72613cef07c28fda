"""Bounds and choices of request options, and the messages for values outside them."""

from enum import StrEnum

from qil_jax.errors import shown

RESOLUTION = 640
"""The default bucket: pictures are resized to about this many pixels squared. The release also supports 1024."""
MULTIPLE = 32
"""Both sides of the model's input picture are multiples of this many pixels."""
MAX_LAYERS = 20
"""The largest number of layers in the release's training data (arXiv 2512.15603, section 4.2)."""
MAX_PROMPT_TOKENS = 1024
"""The largest number of a prompt's tokens that diffusers' pipelines take (`max_sequence_length`)."""
MAX_DEPTH = 8
"""The largest depth of recursion."""
MAX_SEED = 2**32 - 1
"""The largest seed: jax.random.key uses 32 bits and would ignore higher ones."""


class Rescale(StrEnum):
    """The rescaling of a guided velocity's norm."""

    NONE = "none"
    NORM = "norm"  # each token's guided velocity is rescaled to the norm of its conditional one


class Passes(StrEnum):
    """The way in which the two forward passes of guidance are computed."""

    BATCH = "batch"  # as rows of one batch, which the mesh's axis cfg may split
    SEQUENTIAL = "sequential"  # one after the other: half the activations


class Split(StrEnum):
    """The layers of a stack that recursion decomposes again."""

    ALL = "all"
    LARGEST = "largest"  # the layer that covers most


class OutputSize(StrEnum):
    """The size at which layers are written."""

    MODEL = "model"
    INPUT = "input"


class Edges(StrEnum):
    """How layers are brought to the size of a larger picture."""

    REFINED = "refined"  # with edges and colours found in the picture
    PLAIN = "plain"  # interpolated


def integer_problems(name: str, value: object, *, least: int, most: int | None = None) -> list[str]:
    """The reasons why a value is not an integer within the bounds; empty if it is one."""
    if not isinstance(value, int) or isinstance(value, bool):
        return [f"{name} must be an integer, got {shown(value)}"]
    bounds = f"at least {least}" if most is None else f"from {least} to {most}"
    return (
        [] if least <= value and (most is None or value <= most) else [f"{name} must be {bounds}, got {shown(value)}"]
    )


def resolution_problems(name: str, value: object) -> list[str]:
    """The reasons why a value is not the side of a size bucket; empty if it is one."""
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= MULTIPLE and value % MULTIPLE == 0
    return [] if fits else [f"{name} must be a multiple of {MULTIPLE}, got {shown(value)}"]
