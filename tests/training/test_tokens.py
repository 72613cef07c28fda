"""Packed and padded rows give each sample what it would get alone, and padding never reaches the loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qil_jax.layers.layered_image import LayeredImage
from qil_jax.loader.batch import NO_RECORD, Batch
from qil_jax.loader.buckets import BucketConfig
from qil_jax.loader.config import LoaderConfig
from qil_jax.loader.loader import Loader
from qil_jax.loader.tasks import Task, TaskConfig
from qil_jax.models.vld_mmdit import MMDiTConfig, VLDMMDiT
from qil_jax.records.sources import open_source
from qil_jax.training.tokens import batch_tokens

CHANNELS, TEXT, WIDTH = 8, 12, 7
CONFIG = MMDiTConfig(
    num_layers=2, num_attention_heads=2, attention_head_dim=16, axes_dims_rope=(4, 6, 6), joint_attention_dim=TEXT,
    in_channels=CHANNELS, out_channels=2, use_additional_t_cond=True, use_layer3d_rope=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def batch(tmp_path_factory) -> Batch:
    """One batch of samples of 1, 4, 20, 2, 6 and 1 layers, packed, with one row too many."""
    folder = tmp_path_factory.mktemp("stacks")
    rng = np.random.default_rng(0)
    for i, count in enumerate([1, 4, 20, 2, 6, 1]):
        layers = rng.integers(0, 256, (count, 32, 48, 4), np.uint8)
        LayeredImage(layers=layers, names=("",) * count).save(folder / str(i))
    buckets = BucketConfig(resolutions=(32,), multiple=16, row_tokens=22 * 6)
    mix = ((Task.IMAGE_TO_LAYERS, 1.0), (Task.TEXT_TO_LAYERS, 1.0))
    config = LoaderConfig(rows=3, seed=1, buckets=buckets, tasks=TaskConfig(mix=mix), epochs=1)
    (only,) = Loader.of_records(open_source(folder), config)
    assert (only.records[only.records >= 0].size, (only.segments == 0).any()) == (6, True)
    assert len({*only.tasks.tolist()}) == 2
    return only


@pytest.fixture(scope="module")
def model():
    graph, state = nnx.split(VLDMMDiT(CONFIG, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32), state)
    return jax.jit(lambda *a, **k: nnx.merge(graph, state)(*a, **k))


def text_of(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Lengths, and states that depend on the record alone."""
    lengths = np.where(batch.records == NO_RECORD, 0, 1 + (3 * batch.records) % WIDTH)
    states = np.zeros((*batch.records.shape, WIDTH, TEXT), np.float32)
    for place in np.argwhere(lengths):
        record = int(batch.records[tuple(place)])
        states[tuple(place)] = np.random.default_rng(record).standard_normal((WIDTH, TEXT))
    return lengths, states.reshape(len(lengths), -1, TEXT)


def noisy(batch: Batch) -> np.ndarray:
    """Tokens of all pictures, each square of 16 pixels projected to a few channels."""
    rows, pictures, height, width, _ = batch.pictures.shape
    squares = batch.pictures.reshape(rows, pictures, height // 16, 16, width // 16, 16, 4).swapaxes(3, 4)
    project = np.random.default_rng(7).standard_normal((1024, CHANNELS)) / 32
    return (squares.reshape(rows, -1, 1024) / 127.5 @ project).astype(np.float32)


def losses(model, batch: Batch, tokens: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Squared error of each row's targets: what the model gives, against tokens turned round."""
    lengths, _ = text_of(batch)
    where = batch_tokens(batch, lengths, width=WIDTH)
    sigma = jnp.asarray(0.2 + 0.3 * batch.tasks, jnp.float32)
    out = model(tokens, text, where.layout, sigma=sigma, target_kind=jnp.asarray(batch.target_kinds))
    return np.asarray((np.square(out - tokens[..., ::-1]).sum(-1) * where.loss).sum(1))


def alone(batch: Batch, row: int, place: int) -> Batch:
    """A sample as the only one of an unpadded batch."""
    mine = batch.segments[row] == place + 1
    cut = {name: getattr(batch, name)[row][mine][None] for name in ("pictures", "layer_indices", "targets")}
    rest = {name: getattr(batch, name)[row : row + 1] for name in ("tasks", "target_kinds")}
    records = batch.records[row : row + 1, place : place + 1]
    segments = np.ones((1, int(mine.sum())), np.int32)
    return Batch(**cut, **rest, segments=segments, records=records, captions=(("",),), step=batch.step)


@pytest.mark.full
def test_packed_samples_are_worth_what_they_are_alone(model, batch):
    packed = losses(model, batch, noisy(batch), text_of(batch)[1])
    for row in range(len(packed)):
        total, places = 0.0, np.flatnonzero(batch.records[row] >= 0).tolist()
        for place in places:
            single = alone(batch, row, place)
            total += float(losses(model, single, noisy(single), text_of(single)[1])[0])
        assert packed[row] == pytest.approx(total, rel=2e-5) and total >= len(places)


@pytest.mark.full
def test_what_lies_in_the_padding_never_reaches_the_loss(model, batch):
    lengths, text = text_of(batch)
    where = batch_tokens(batch, lengths, width=WIDTH)
    tokens = noisy(batch)
    clean = losses(model, batch, tokens, text)
    dirty_tokens = np.where((np.asarray(where.layout.image_segments) == 0)[..., None], np.float32(1e3), tokens)
    dirty_text = np.where((np.asarray(where.layout.text_segments) == 0)[..., None], np.float32(1e3), text)
    assert (dirty_tokens != tokens).any() and (dirty_text != text).any()
    np.testing.assert_array_equal(losses(model, batch, dirty_tokens, dirty_text), clean)
    seen = np.where((np.asarray(where.layout.image_segments) == 1)[..., None], tokens + 1, tokens)
    assert (losses(model, batch, seen.astype(np.float32), text) != clean).any()


def test_conditions_are_seen_but_do_not_count(batch):
    lengths, _ = text_of(batch)
    where = batch_tokens(batch, lengths, width=WIDTH)
    layers = np.asarray(where.layout.image_positions)[..., 0]
    inside = np.asarray(where.layout.image_segments) > 0
    np.testing.assert_array_equal(where.loss, inside & (layers >= 0))
    assert (inside & (layers == -1)).any()


def test_text_begins_beyond_the_pictures_of_its_own_sample(batch):
    lengths, _ = text_of(batch)
    positions = np.asarray(batch_tokens(batch, lengths, width=WIDTH).layout.text_positions)
    for row, place in np.argwhere(batch.records >= 0).tolist():
        mine = positions[row].reshape(-1, WIDTH, 3)[place, : lengths[row, place]]
        targets = int((batch.targets[row] & (batch.segments[row] == place + 1)).sum())
        np.testing.assert_array_equal(mine, max(1, targets) + np.arange(len(mine))[:, None].repeat(3, 1))


def test_text_that_does_not_fit_is_refused(batch):
    lengths = np.full_like(batch.records, WIDTH + 1)
    with pytest.raises(ValueError, match="a text of 8 tokens does not fit into 7"):
        batch_tokens(batch, lengths, width=WIDTH)


def test_empty_rows_cost_nothing(model, batch):
    empty = dataclasses.replace(
        batch,
        pictures=np.zeros_like(batch.pictures),
        segments=np.zeros_like(batch.segments),
        targets=np.zeros_like(batch.targets),
        records=np.full_like(batch.records, NO_RECORD),
    )
    assert not losses(model, empty, noisy(empty), text_of(empty)[1]).any()
