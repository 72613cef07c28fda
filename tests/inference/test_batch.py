"""Unlike pictures in one padded batch, and latents as tokens."""

import numpy as np
import pytest

from qil_jax.inference.batch import Item, Ways, build_batch
from qil_jax.models.latents import pack

Z, E = 6, 10


def item(layers: int, h: int, w: int, words: int, *, negative: int | None = 3, seed: int = 0) -> Item:
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    return Item(
        noise=draw(layers + 1, h, w, Z),
        condition=draw(h, w, Z),
        prompt=draw(words, E),
        negative=None if negative is None else draw(negative, E),
        sigmas=np.linspace(1, 0, 4, dtype=np.float32),
    )


def test_rows_hold_composite_layers_condition_and_padding():
    items = [item(1, 4, 6, 5), item(3, 6, 4, 70, seed=1)]
    batch = build_batch(items, patch=2, guidance=4.0, ways=Ways())
    lengths = [3 * 6, 5 * 6]
    assert batch.tokens.shape == (2, 30, 4 * Z)
    assert batch.text.shape == (4, 96, E) and batch.passes == 2
    is_target, positions = np.asarray(batch.is_target), np.asarray(batch.layout.image_positions)
    segments = np.asarray(batch.layout.image_segments)
    for i, (one, length) in enumerate(zip(items, lengths, strict=True)):
        targets = len(one.noise)
        assert is_target[i].sum() == targets * 6 and is_target[i, : targets * 6].all()
        layers = positions[i, :length, 0].reshape(-1, 6)
        assert [set(row) for row in layers] == [{k} for k in (*range(targets), -1)]
        np.testing.assert_array_equal(segments[i], np.arange(30) < length)
        np.testing.assert_array_equal(batch.tokens[i, targets * 6 : length], pack(one.condition[None], 2))
        assert not np.asarray(batch.tokens)[i, length:].any()
    np.testing.assert_array_equal(np.asarray(batch.layout.text_segments).sum(axis=1), [5, 70, 3, 3])
    np.testing.assert_array_equal(segments[:2], segments[2:])


@pytest.mark.parametrize(
    ("ways", "rows"), [(Ways(samples=8, rows=8), 8), (Ways(samples=2, rows=4), 4), (Ways(rows=2), 3)]
)
def test_added_rows_make_the_batch_divide(ways, rows):
    batch = build_batch([item(1, 4, 4, 5)] * 3, patch=2, guidance=4.0, ways=ways)
    assert batch.tokens.shape[0] == rows
    assert (batch.passes * rows) % ways.rows == 0
    np.testing.assert_array_equal(batch.tokens[-1], batch.tokens[2])


def test_tokens_divide_for_context_parallelism():
    batch = build_batch([item(2, 6, 10, 5)], patch=2, guidance=4.0, ways=Ways(tokens=8))
    assert batch.tokens.shape[1] % 8 == 0 and batch.text.shape[1] % 8 == 0
    assert np.asarray(batch.layout.image_segments).sum() == 2 * 4 * 15


def test_guidance_off_is_one_pass():
    for items, scale in (([item(1, 4, 4, 5, negative=None)], 4.0), ([item(1, 4, 4, 5)], 1.0)):
        assert build_batch(items, patch=2, guidance=scale, ways=Ways()).passes == 1
    mixed = build_batch([item(1, 4, 4, 5), item(1, 4, 4, 5, negative=None)], patch=2, guidance=3.0, ways=Ways())
    assert mixed.passes == 2
    np.testing.assert_array_equal(mixed.scales, [3, 1])
