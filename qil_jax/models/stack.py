"""Equal blocks held as one, their parameters stacked on a leading axis, and applied by one scan (design.md 3.4)."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

from qil_jax.models.axes import Axis

Block = TypeVar("Block", bound=nnx.Module)
Carry = TypeVar("Carry")


def stack_blocks(make: Callable[[nnx.Rngs], Block], count: int, *, rngs: nnx.Rngs) -> Block:
    """`count` independently initialised blocks as one module whose parameters lead with Axis.BLOCK."""
    split = nnx.split_rngs(splits=count)
    stacked = split(nnx.vmap(make, in_axes=(0,), out_axes=0))(rngs)
    for _, parameter in nnx.to_flat_state(nnx.state(stacked, nnx.Param)):
        axes = parameter.get_metadata()["axes"]
        parameter.set_metadata(axes=(Axis.BLOCK, *axes))
    return stacked


def block_at(stacked: Block, index: int) -> Block:
    """One block of a stack, as a module of its own."""
    graph, state = nnx.split(stacked)
    return nnx.merge(graph, jax.tree.map(lambda x: x[index], state))


def scan_blocks(stacked: nnx.Module, step: Callable[[Any, Carry, Any], Carry], carry: Carry, inputs: Any) -> Carry:
    """Fold `step(block, carry, input)` over the stack; `inputs` lead with the block axis (or are None)."""
    graph, state = nnx.split(stacked)

    def body(carry: Carry, xs: Any) -> tuple[Carry, None]:
        block_state, block_inputs = xs
        return step(nnx.merge(graph, block_state), carry, block_inputs), None

    return jax.lax.scan(body, carry, (state, inputs))[0]
