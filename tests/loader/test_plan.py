"""The plan: every record once an epoch, whatever the packing, as a function of the step alone."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qil_jax.loader.buckets import Bucket
from qil_jax.loader.plan import Order, Plan

BUCKETS = [
    Bucket(width=64, height=64, room=22),
    Bucket(width=96, height=32, room=25),
    Bucket(width=32, height=32, room=6),
]
RECORDS = st.lists(st.tuples(st.sampled_from(BUCKETS), st.integers(1, 22)), min_size=1, max_size=60)


def plan_of(records, rows, seed=0, order=Order.SHUFFLED):
    buckets = [bucket for bucket, _ in records]
    pictures = np.array([min(count, bucket.room) for bucket, count in records])
    return Plan(buckets, pictures, rows=rows, seed=seed, order=order), buckets, pictures


@given(RECORDS, st.integers(1, 7), st.integers(0, 99), st.sampled_from(Order))
def test_each_record_once_an_epoch_in_its_bucket_and_within_the_room(records, rows, seed, order):
    plan, buckets, pictures = plan_of(records, rows, seed, order)
    for epoch in range(3):
        seen: collections.Counter[int] = collections.Counter()
        for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
            batch = plan.batch(step)
            assert batch.epoch == epoch and batch.shape in plan.shapes
            assert batch.records.shape == (rows, batch.shape.samples)
            for row in batch.records:
                mine = row[row >= 0]
                seen.update(mine.tolist())
                assert pictures[mine].sum() <= batch.shape.pictures
                assert all(
                    (buckets[i].width, buckets[i].height) == (batch.shape.width, batch.shape.height) for i in mine
                )
                assert all(batch.shape.pictures <= buckets[i].room for i in mine)
        assert seen == collections.Counter(range(len(records)))


def test_a_step_is_the_same_from_wherever_it_is_reached():
    records = [(BUCKETS[i % 3], 1 + i % 9) for i in range(100)]
    one, other = plan_of(records, 4)[0], plan_of(records, 4)[0]
    forwards = [one.batch(step).records for step in range(80)]
    for step in np.random.default_rng(0).permutation(80).tolist():
        np.testing.assert_array_equal(other.batch(step).records, forwards[step])


def test_epochs_and_seeds_differ_and_sequential_ones_do_not():
    records = [(BUCKETS[0], 22)] * 30
    flat = lambda plan, epoch: [
        i for s in range(plan.steps_per_epoch) for i in plan.batch(epoch * plan.steps_per_epoch + s).records.ravel()
    ]
    plan, other, still = (
        plan_of(records, 5)[0],
        plan_of(records, 5, seed=1)[0],
        plan_of(records, 5, 0, Order.SEQUENTIAL)[0],
    )
    assert len({tuple(flat(p, e)) for p in (plan, other) for e in range(3)}) == 6
    assert flat(still, 0) == flat(still, 4) == list(range(30))


@pytest.mark.parametrize(("pictures", "rows"), [([22] * 3, 3), ([6] * 9, 3), ([20, 10, 10, 2, 2], 2), ([1] * 22, 1)])
def test_rows_are_filled(pictures, rows):
    plan, *_ = plan_of([(BUCKETS[0], count) for count in pictures], 1)
    assert plan.steps_per_epoch == rows


def test_the_shape_is_no_larger_than_what_is_there():
    plan, *_ = plan_of([(BUCKETS[0], 5)] * 3, 2)
    (shape,) = plan.shapes
    assert (shape.pictures, shape.samples) == (15, 3)
