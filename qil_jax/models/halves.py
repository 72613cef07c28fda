"""A backbone whose heads keep the two features of a rotated pair half a head apart, as TPUs rotate them cheaply.

Stored and trained parameters have the released order, in which the two are neighbours. The order of a head's features
is without effect on the products of queries and keys, so both backbones compute the same up to rounding.
"""

import functools
from typing import Any

import jax
from flax import nnx
from jax import Array
from jax.core import Tracer

from qil_jax.models.axes import Axis
from qil_jax.models.rope import Rotation
from qil_jax.models.vld_mmdit import Backbone, Stream


def rotated_by_halves(backbone: Backbone) -> Backbone:
    """The same function of its inputs with Rotation.HALVES; parameters but those of q and k are shared.

    Kernels, biases, scales of quantised kernels, LoRA factors and norms of queries and keys are reordered, on the
    devices on which they lie. Gradients flow through. An abstract backbone stays abstract.
    """
    backbone = nnx.merge(*nnx.split(backbone), copy=True)
    for stream in (backbone.blocks.image, backbone.blocks.text):
        if stream.rotation is Rotation.INTERLEAVED:
            _reorder(stream)
            stream.rotation = Rotation.HALVES
    return backbone


def reordering_programs(backbone: Backbone) -> list[jax.stages.Lowered]:
    """The programs by which `rotated_by_halves` reorders the parameters of such a backbone, which may be abstract."""
    streams = (backbone.blocks.image, backbone.blocks.text)
    values = [(p.get_value(), stream.head_dim) for stream in streams for p in _of_heads(stream)]
    shapes = {(x.shape, x.dtype, x.sharding, head_dim) for x, head_dim in values}
    return [
        _program(head_dim, sharding).lower(jax.ShapeDtypeStruct(shape, dtype, sharding=sharding))
        for shape, dtype, sharding, head_dim in shapes
    ]


def _reorder(stream: Stream) -> None:
    """Reorder all parameters of queries and keys whose last axis holds the features of heads."""
    for parameter in _of_heads(stream):
        value = parameter.get_value()
        if not isinstance(value, jax.ShapeDtypeStruct):
            placed = None if isinstance(value, Tracer) else value.sharding
            parameter.set_value(_program(stream.head_dim, placed)(value))


def _of_heads(stream: Stream) -> list[nnx.Param]:
    """The parameters of queries and keys whose last axis holds the features of heads."""
    found = [
        parameter
        for module in (stream.q, stream.k)
        for _, parameter in nnx.to_flat_state(nnx.state(module, nnx.Param))
        if parameter.get_metadata()["axes"][-1] is Axis.HEADS
    ]
    return [*found, stream.q_norm.scale, stream.k_norm.scale]


def _program(head_dim: int, placed: Any) -> Any:
    return jax.jit(functools.partial(_even_first, head_dim=head_dim), out_shardings=placed)


def _even_first(x: Array, *, head_dim: int) -> Array:
    """Even features of every head before odd ones, along the last axis."""
    pairs = x.reshape(*x.shape[:-1], -1, head_dim // 2, 2)
    return pairs.swapaxes(-1, -2).reshape(x.shape)
