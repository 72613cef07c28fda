"""Choices of tokens, and products where kernels lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qil_jax.models.decoding import Choice, chosen, filtered
from qil_jax.models.layers import gated, linear
from qil_jax.models.products import InPlace
from qil_jax.models.stack import scan_blocks, scan_blocks_in_place, stack_blocks

ROWS = 4000
draw = jax.jit(chosen)


def choice(rows: int, **changes) -> Choice:
    values = {"repetition_penalty": 1.0, "is_sampled": True, "temperature": 1.0, "top_k": 99, "top_p": 1.0, **changes}
    kinds = {"is_sampled": bool, "top_k": np.int32}
    arrays = {key: jnp.full(rows, value, kinds.get(key, np.float32)) for key, value in values.items()}
    return Choice(**arrays, seeds=jnp.arange(rows, dtype=jnp.uint32))


@pytest.mark.full
def test_drawn_ids_have_the_probabilities_of_the_filtered_scores():
    scores = jnp.broadcast_to(jnp.asarray([2.0, -1.0, 0.5, 0.0, 1.5, -3.0]), (ROWS, 6))
    how = choice(ROWS, temperature=1.5, top_k=5, top_p=0.9)
    kept = filtered(scores[:1], how.temperature[:1], how.top_k[:1], how.top_p[:1])[0]
    expected = np.exp(kept) / np.exp(kept).sum()
    assert (expected == 0).sum() == 2
    counts = np.bincount(draw(scores, scores > 9, how, jnp.asarray(3)), minlength=6) / ROWS
    np.testing.assert_allclose(counts, expected, atol=0.03)  # four standard deviations
    assert not counts[expected == 0].any()


@pytest.mark.full
def test_a_row_is_drawn_by_its_own_seed_and_place_alone():
    """Not by its neighbours, of which some are not drawn at all."""
    rng = np.random.default_rng(0)
    scores, seen = jnp.asarray(rng.standard_normal((6, 50)), jnp.float32), jnp.asarray(rng.random((6, 50)) < 0.3)
    how = choice(6, repetition_penalty=1.4, temperature=2.0)
    how = Choice(**{**vars(how), "is_sampled": jnp.asarray([True, False, True, True, False, True])})
    draws = np.array([draw(scores, seen, how, jnp.asarray(count)) for count in range(8)])
    some = np.array([5, 0, 1])
    others = Choice(**{key: value[some] for key, value in vars(how).items()})
    found = np.array([draw(scores[some], seen[some], others, jnp.asarray(count)) for count in range(8)])
    np.testing.assert_array_equal(found, draws[:, some])
    assert [len(set(row)) > 1 for row in draws.T] == how.is_sampled.tolist()


@pytest.mark.parametrize(
    ("shape", "rows"), [((3, 96, 70), 4), ((2, 35, 64), 1), ((41, 81), 3), ((2, 35, 600), 20), ((41, 512), 9)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.full
def test_products_in_place(shape, rows, dtype):
    """Of a kernel or of the second in a stack; eight rows of it at a time, five, or one; for many rows by columns."""
    rng = np.random.default_rng(1)
    x, kernel = (jnp.asarray(rng.standard_normal(s), dtype) for s in ((rows, 2, shape[-2]), shape))
    expected = np.asarray(x, np.float64) @ np.asarray(kernel[1] if len(shape) == 3 else kernel, np.float64)
    found = InPlace(jnp.asarray(1))(x, kernel)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("sizes", [(24, 600), (256, 512), (40, 70)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
@pytest.mark.full
def test_a_gated_network_in_place(sizes, bias, dtype, tolerance):
    """Of the second block in a stack, with hidden columns in pieces, against the whole of it; few rows, and many."""
    width, hidden = sizes
    wide = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    make = lambda rngs: nnx.Dict({name: linear(*pair, bias=bias, rngs=rngs) for name, pair in wide.items()})
    stacked = stack_blocks(make, 2, rngs=nnx.Rngs(0))
    random = iter(nnx.Rngs(1).params() for _ in range(9))

    def step(block, carry, number):
        x, total = carry
        return x, total + number * gated(block["gate"], block["up"], block["down"], x)

    drawn = lambda x: jax.random.normal(next(random), x.shape, dtype) * 0.3
    nnx.update(stacked, jax.tree.map(drawn, nnx.state(stacked)))
    for rows in (3, 50):
        x = jax.random.normal(jax.random.key(2), (rows, 2, width), dtype)
        found, wanted = (
            np.asarray(fold(stacked, step, (x, jnp.zeros_like(x)), jnp.asarray([1, 3], dtype))[1], np.float64)
            for fold in (scan_blocks_in_place, scan_blocks)
        )
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(found, wanted, atol=tolerance * np.abs(wanted).max())
