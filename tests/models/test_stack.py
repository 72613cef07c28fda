"""Stacked blocks: scanned, or taken apart and run one after the other."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qil_jax.models.axes import Axis
from qil_jax.models.layers import linear
from qil_jax.models.stack import block_at, scan_blocks, stack_blocks, unstack_blocks


def stack(count: int):
    return stack_blocks(lambda rngs: linear((5, Axis.EMBED), 5, rngs=rngs), count, rngs=nnx.Rngs(0))


def run(blocks, inputs):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5)), jnp.float32)
    return scan_blocks(blocks, lambda block, x, shift: jnp.tanh(block(x) + shift), x, inputs)


@pytest.mark.parametrize("count", [1, 4])
def test_blocks_run_in_order_scanned_or_not(count):
    shifts = jnp.arange(count, dtype=jnp.float32)
    expected = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5)), jnp.float32)
    for k in range(count):
        expected = jnp.tanh(block_at(stack(count), k)(expected) + shifts[k])
    np.testing.assert_allclose(run(stack(count), shifts), expected, atol=1e-6)
    np.testing.assert_allclose(run(unstack_blocks(stack(count)), shifts), expected, atol=1e-6)


def test_taking_apart_uses_the_stack_up():
    whole = stack(3)
    apart = unstack_blocks(whole)
    assert len(apart) == 3 and apart[1].kernel[...].shape == (5, 5)
    assert whole.kernel.get_value().is_deleted()


def test_inputs_may_be_absent():
    blocks = stack(3)
    step = lambda block, x, nothing: block(x)  # noqa: E731
    x = jnp.ones((2, 5))
    np.testing.assert_allclose(
        scan_blocks(blocks, step, x, None), scan_blocks(unstack_blocks(stack(3)), step, x, None), atol=1e-6
    )
