"""Products of the transformer whose sums cross devices, with the collectives written out."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.lax import PrecisionLike

from qil_jax.mesh.sharding import Sharding
from qil_jax.models.axes import Axis
from qil_jax.models.products import MatMul
from qil_jax.models.vld_mmdit import Backbone


def with_scattered_sums(backbone: Backbone, sharding: Sharding) -> Backbone:
    """The same function of its inputs, in which sums over the devices of `tensor` are reduced and scattered at once.

    These are the products that end attention and MLP. Left to itself, XLA reduces some of them on every device, in
    fp32: here each device receives its own tokens only, and partial sums travel in the dtype of the activations, a
    quarter as many bytes in bf16. Parameters are shared with the given backbone, which may be abstract. Maps that have
    a LoRA, and rules by which the residual stream is not split as the sums are, are left to the compiler.
    """
    if sharding.ways(Axis.RESIDUAL) == sharding.ways(Axis.TOKENS):
        return backbone
    split = lambda axis: sharding.rules.table.get(axis, ())
    backbone = nnx.merge(*nnx.split(backbone))
    for stream in (backbone.blocks.image, backbone.blocks.text):
        for module, axis in ((stream.out, Axis.HEADS), (stream.mlp_out, Axis.MLP)):
            if module.lora is None and split(Axis.RESIDUAL) == split(Axis.TOKENS) + split(axis):
                module.matmul = scattered_matmul(sharding, axis)
    return backbone


def scattered_matmul(sharding: Sharding, axis: Axis) -> MatMul:
    """The product x [b, t, i] @ kernel [i, o] with i split as `axis` is; t is split as Axis.RESIDUAL in the result."""
    rules, ways = sharding.rules, sharding.ways(axis)
    over = tuple(mesh_axis.value for mesh_axis in rules.table[axis])

    def local(x: Array, kernel: Array, precision: PrecisionLike) -> Array:
        sums = jnp.matmul(x, kernel, precision=precision, preferred_element_type=jnp.float32).astype(x.dtype)
        # Scattered along an axis of its own: XLA for TPUs makes a sum on every device of one along tiles.
        parts = sums.reshape(sums.shape[0], ways, -1, sums.shape[-1])
        return jax.lax.psum_scatter(jnp.moveaxis(parts, 1, 0), over, scatter_dimension=0)

    def product(x: Array, kernel: Array, precision: PrecisionLike = None) -> Array:
        mapped = jax.shard_map(
            lambda x, kernel: local(x, kernel, precision),
            mesh=sharding.mesh,
            in_specs=(rules.spec((Axis.BATCH, Axis.TOKENS, axis)), rules.spec((axis, None))),
            out_specs=rules.spec((Axis.BATCH, Axis.RESIDUAL, None)),
            check_vma=False,
        )
        return mapped(x, kernel).astype(jnp.float32)

    return product
