"""Names of the dimensions of parameters and activations, the only notion of sharding in the models."""

from collections.abc import Callable
from enum import StrEnum

from jax import Array
from jaxtyping import Shaped


class Axis(StrEnum):
    """A logical dimension. `qil_jax.mesh.Rules` maps each to the mesh axes that it is split over, if any."""

    SAMPLE = "sample"  # pictures of a batch
    BATCH = "batch"  # rows of the transformer: samples, twice as many under guidance
    TOKENS = "tokens"  # image or text positions of a sequence
    RESIDUAL = "residual"  # the same in the residual stream, between the products with parameters
    HEADS = "heads"  # attention heads, or the head-major width of q, k and v
    EMBED = "embed"  # the residual stream's width inside a parameter
    VISION = "vision"  # the residual stream's width in a feed-forward kernel of the vision tower
    MLP = "mlp"  # the feed-forward width
    MODULATION = "modulation"  # the six stacked shift, scale and gate vectors
    VOCAB = "vocab"  # token ids
    CHANNELS_IN = "channels_in"  # a convolution's input channels
    CHANNELS_OUT = "channels_out"  # a convolution's output channels
    BLOCK = "block"  # the leading axis of scanned blocks


Axes = tuple[Axis | None, ...]
Constrain = Callable[[Array, Axes], Array]
"""A function that constrains an activation to the sharding of its logical axes, made by `mesh.constrain`."""


def unconstrained(x: Shaped[Array, "*n"], axes: Axes) -> Shaped[Array, "*n"]:
    """Return `x` as it is: the compiler chooses its sharding."""
    del axes
    return x
