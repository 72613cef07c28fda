"""Which rows a process reads where the mesh does not give it neighbouring ones."""

from types import SimpleNamespace

import numpy as np
import pytest

from qil_jax.mesh import TRAINING_RULES, MeshShape, Sharding, make_mesh
from qil_jax.models.axes import Axis
from qil_jax.training.batches import RowPlacement


@pytest.mark.parametrize(
    ("rows", "here", "first", "count"),
    [
        (8, [(2, 3), (3, 4)], 2, 2),  # neighbours
        (8, [(0, 1), (6, 7)], 0, 8),  # the ends of a torus: everything
        (8, [(4, 5), (7, 8)], 4, 4),
        (12, [(5, 6), (6, 7)], 4, 4),
        (8, [(5, 6), (5, 6)], 5, 1),  # shared with another process
    ],
)
def test_a_process_reads_the_smallest_share_that_holds_its_rows(rows, here, first, count, monkeypatch):
    indices = {i: (slice(*span),) for i, span in enumerate(here)}
    placed = SimpleNamespace(addressable_devices_indices_map=lambda shape: indices)
    monkeypatch.setattr(Sharding, "named", lambda self, axes: placed)
    placement = RowPlacement(Sharding(make_mesh(MeshShape(context=8)), TRAINING_RULES), rows)
    assert (placement.first, placement.count) == (first, count)
    assert (placement.processes.index, placement.processes.count) == (first // count, rows // count)


def test_rows_beyond_all_memory_are_divided_at_once():
    """A process that has all rows has them by arithmetic: it once counted to their number."""
    placement = RowPlacement(Sharding(make_mesh(MeshShape(data=8)), TRAINING_RULES), 8 * 10**15)
    assert (placement.first, placement.count) == (0, 8 * 10**15)


def test_rows_are_put_where_they_belong():
    placement = RowPlacement(Sharding(make_mesh(MeshShape(data=4, context=2)), TRAINING_RULES), 8)
    local = np.arange(8 * 6, dtype=np.int32).reshape(8, 6)
    placed = placement.put(local, (Axis.BATCH, Axis.TOKENS))
    assert np.array_equal(placed, local)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
