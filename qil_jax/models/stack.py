"""Blocks of equal structure held as one module, with parameters stacked on a leading axis and applied by a scan."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from qil_jax.choices import Remat
from qil_jax.models.axes import Axis
from qil_jax.models.layers import use_matmul
from qil_jax.models.products import InPlace

Block = TypeVar("Block", bound=nnx.Module)
Carry = TypeVar("Carry")
Fold = Callable[[Any, Callable[[Any, Any, Any], Any], Any, Any], Any]
"""`scan_blocks`, or `scan_blocks_in_place` on a CPU."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """Settings of the scan over a stack of blocks.

    Attributes:
      remat: activations that are kept for the backward pass.
      unroll: whether each block is compiled separately: compile time grows with depth, but on a CPU no parameters are
        copied out of the stack.
    """

    remat: Remat = Remat.NONE
    unroll: bool = False


PLAIN = Scan()


def stack_blocks(make: Callable[[nnx.Rngs], Block], count: int, *, rngs: nnx.Rngs) -> Block:
    """A module of `count` independently initialised blocks, whose parameters have Axis.BLOCK as leading axis."""
    split = nnx.split_rngs(splits=count)
    stacked = split(nnx.vmap(make, in_axes=(0,), out_axes=0))(rngs)
    for _, parameter in nnx.to_flat_state(nnx.state(stacked, nnx.Param)):
        axes = parameter.get_metadata()["axes"]
        parameter.set_metadata(axes=(Axis.BLOCK, *axes))
    return stacked


def block_at(stacked: Block, index: int) -> Block:
    """The block of a stack at `index`, as a separate module."""
    graph, state = nnx.split(stacked)
    return nnx.merge(graph, jax.tree.map(lambda x: x[index], state))


def scan_blocks(
    stacked: nnx.Module,
    step: Callable[[Any, Carry, Any], Carry],
    carry: Carry,
    inputs: Any,
    *,
    how: Scan = PLAIN,
) -> Carry:
    """Fold `step(block, carry, input)` over the stack; `inputs` have blocks as leading axis, or are None."""
    graph, state = nnx.split(stacked)

    def body(carry: Carry, xs: Any) -> tuple[Carry, None]:
        block_state, block_inputs = xs
        return step(nnx.merge(graph, block_state), carry, block_inputs), None

    if how.remat is not Remat.NONE:
        policies = jax.checkpoint_policies
        policy = policies.dots_with_no_batch_dims_saveable if how.remat is Remat.DOTS else policies.nothing_saveable
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jax.lax.scan(body, carry, (state, inputs), unroll=how.unroll)[0]


def scan_blocks_in_place(
    stacked: nnx.Module, step: Callable[[Any, Carry, Any], Carry], carry: Carry, inputs: Any
) -> Carry:
    """`scan_blocks` on a single CPU device, by `InPlace`: no block's kernels are copied as a whole."""
    is_kernel = lambda path, parameter: path[-1] == "kernel" and jnp.issubdtype(parameter.dtype, jnp.floating)
    graph, kernels, state = nnx.split(stacked, is_kernel, ...)

    def body(carry: Carry, xs: Any) -> tuple[Carry, None]:
        block_state, block_inputs, index = xs
        block = nnx.merge(graph, kernels, block_state)
        use_matmul(block, InPlace(index))
        return step(block, carry, block_inputs), None

    count = len(jax.tree.leaves((kernels, state))[0])
    return jax.lax.scan(body, carry, (state, inputs, jnp.arange(count)))[0]
