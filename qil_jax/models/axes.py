"""Names for the dimensions of parameters and activations, the only thing the models know of sharding."""

from collections.abc import Callable
from enum import StrEnum

from jax import Array


class Axis(StrEnum):
    """One logical dimension. `qil_jax.mesh.Rules` says which mesh axes, if any, each is split over."""

    SAMPLE = "sample"  # pictures of a batch
    BATCH = "batch"  # rows of the transformer: samples, twice as many under guidance
    TOKENS = "tokens"  # image or text positions of a sequence
    HEADS = "heads"  # attention heads, or the head-major width of q, k and v
    EMBED = "embed"  # the residual stream's width inside a parameter
    MLP = "mlp"  # the feed-forward width
    MODULATION = "modulation"  # the six stacked shift, scale and gate vectors
    VOCAB = "vocab"  # token ids
    CHANNELS_IN = "channels_in"  # a convolution's input channels
    CHANNELS_OUT = "channels_out"  # a convolution's output channels
    BLOCK = "block"  # the leading axis of scanned blocks


Axes = tuple[Axis | None, ...]
Constrain = Callable[[Array, Axes], Array]
"""Pins an activation to the sharding of its logical axes. `mesh` supplies one; `unconstrained` is the default."""


def unconstrained(x: Array, axes: Axes) -> Array:
    """The identity: leave the choice of sharding to the compiler."""
    del axes
    return x
