"""The loader: every record once, the same bits for any processes and workers, and rows of whole samples."""

import collections
import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qil_jax.layers.layered_image import LayeredImage
from qil_jax.loader.batch import NO_RECORD, TASKS, Batch
from qil_jax.loader.buckets import BucketConfig
from qil_jax.loader.config import LoaderConfig, Processes, Workers
from qil_jax.loader.loader import Loader
from qil_jax.loader.plan import Order
from qil_jax.loader.tasks import Task, TaskConfig
from qil_jax.records.sources import open_source

LAYERS = [1, 4, 20, 2, 7, 3, 4, 1, 25, 5, 4, 6, 1]
SIZES = [(40, 40), (64, 48), (90, 31), (33, 70), (128, 128)]
BUCKETS = BucketConfig(resolutions=(32, 64), multiple=16, row_tokens=22 * 16)
MIX = ((Task.IMAGE_TO_LAYERS, 2.0), (Task.TEXT_TO_LAYERS, 1.0))
CONFIG = LoaderConfig(rows=6, seed=3, buckets=BUCKETS, tasks=TaskConfig(mix=MIX), epochs=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Stacks of 1 to 25 layers on canvases of all ratios: translucent blocks over a ground, noise under alpha 0."""
    root = tmp_path_factory.mktemp("stacks")
    rng = np.random.default_rng(0)
    for i, count in enumerate(LAYERS):
        width, height = SIZES[i % len(SIZES)]
        layers = rng.integers(0, 256, (count, height, width, 4), np.uint8)
        layers[..., 3] = 0
        layers[0, ..., 3] = 255 if i % 2 else 90
        for layer in layers[1:]:
            y, x = int(rng.integers(0, height * 3 // 4)), int(rng.integers(0, width * 3 // 4))
            layer[y : y + height // 3, x : x + width // 3] = rng.integers(40, 256, 4)
        names = tuple(f"layer {k}" for k in range(count))
        LayeredImage(layers=layers, names=names, caption=f"stack {i}").save(root / f"{i:03d}")
    return root


@pytest.fixture(scope="module")
def source(folder):
    return open_source(folder)


def same(a: Batch, b: Batch) -> bool:
    fields = dataclasses.asdict(a), dataclasses.asdict(b)
    return all(np.array_equal(x, y) for x, y in zip(fields[0].values(), fields[1].values(), strict=True))


def rows_of(batch: Batch, rows: slice) -> Batch:
    cut = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return Batch(**{name: value if name == "step" or value is None else value[rows] for name, value in cut.items()})


@pytest.fixture(scope="module")
def whole(source) -> list[Batch]:
    """Two epochs, seen by one process."""
    return list(Loader.of_records(source, CONFIG))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.full
def test_processes_share_every_record_exactly_once_an_epoch(source, whole, count):
    loaders = [Loader.of_records(source, CONFIG, processes=Processes(index=i, count=count)) for i in range(count)]
    seen: collections.Counter[int] = collections.Counter()
    for step, parts in enumerate(zip(*loaders, strict=True)):
        for i, part in enumerate(parts):
            mine = CONFIG.rows // count
            assert same(part, rows_of(whole[step], slice(i * mine, (i + 1) * mine)))
            seen.update(part.records[part.records != NO_RECORD].tolist())
    assert seen == dict.fromkeys(range(len(LAYERS)), 2) and step + 1 == 2 * loaders[0].plan.steps_per_epoch


@pytest.mark.full
def test_processes_of_the_system_agree(folder, whole, tmp_path):
    """Three real processes, each with its share, hash their batches."""
    code = (
        "import hashlib, sys; sys.path[:0] = sys.argv[3:]\n"
        "from test_loader import *\n"
        "here = Processes(index=int(sys.argv[2]), count=3)\n"
        "loader = Loader.of_records(open_source(sys.argv[1]), CONFIG, processes=here)\n"
        "print([hashlib.sha256(batch.pictures.tobytes()).hexdigest() for batch in loader])"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    for i in range(3):
        command = [sys.executable, "-c", code, str(folder), str(i), *paths]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        parts = [rows_of(batch, slice(2 * i, 2 * i + 2)).pictures for batch in whole]
        assert output.strip() == str([hashlib.sha256(np.ascontiguousarray(p).tobytes()).hexdigest() for p in parts])


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 1), (1, 3), (3, 2)])
@pytest.mark.full
def test_a_restored_loader_goes_on_bit_for_bit(source, whole, before, after):
    rng = np.random.default_rng(before * 10 + after)
    for stop in rng.integers(0, len(whole), 3).tolist():
        loaders = [Loader.of_records(source, CONFIG, processes=Processes(index=i, count=before)) for i in range(before)]
        for loader in loaders:
            for _ in range(stop):
                next(loader)
        states = {json.dumps(loader.state()) for loader in loaders}
        assert len(states) == 1
        fresh = [Loader.of_records(source, CONFIG, processes=Processes(index=i, count=after)) for i in range(after)]
        for i, loader in enumerate(fresh):
            loader.restore(json.loads(*states))
            mine = slice(i * CONFIG.rows // after, (i + 1) * CONFIG.rows // after)
            rest = list(loader)
            assert len(rest) == len(whole) - stop
            assert all(same(a, rows_of(b, mine)) for a, b in zip(rest, whole[stop:], strict=True))


@pytest.mark.parametrize("workers", [Workers(processes=2, threads=1, ahead=1), Workers(threads=5, ahead=9)])
@pytest.mark.full
def test_workers_change_nothing(source, whole, workers):
    with Loader.of_records(source, CONFIG, workers=workers) as loader:
        first = [next(loader) for _ in range(5)]
        state = loader.state()
    assert all(same(a, b) for a, b in zip(first, whole, strict=False))
    with Loader.of_records(source, CONFIG, workers=workers) as loader:
        loader.restore(state)
        assert same(next(loader), whole[5])


def test_a_batch_holds_samples_of_1_4_and_20_layers(folder, tmp_path):
    for name, record in [("a", "000"), ("b", "001"), ("c", "002")]:
        image = LayeredImage.load(folder / record)
        padded = np.zeros((len(image.layers), 96, 96, 4), np.uint8)
        padded[:, : image.layers.shape[1], : image.layers.shape[2]] = image.layers
        padded[0, ..., 3] = 255
        LayeredImage(layers=padded, names=image.names).save(tmp_path / name)
    config = dataclasses.replace(CONFIG, rows=2, order=Order.SEQUENTIAL, tasks=TaskConfig())
    batch = next(Loader.of_records(open_source(tmp_path), config))
    assert batch.pictures.shape == (2, 22, 64, 64, 4) and batch.records.tolist() == [[2, NO_RECORD], [1, 0]]
    assert batch.segments.tolist() == [[1] * 22, [1] * 6 + [2] * 3 + [0] * 13]
    assert batch.layer_indices.tolist() == [
        [*range(21), -1],
        [0, 1, 2, 3, 4, -1, 0, 1, -1] + [0] * 13,
    ]
    assert batch.targets.tolist() == [[True] * 21 + [False], [True] * 5 + [False, True, True] + [False] * 14]


def test_rows_hold_whole_samples_and_padding_is_empty(source, whole):
    records = [source[i] for i in range(len(LAYERS))]
    tasks = collections.Counter()
    for batch in whole:
        assert batch.pictures.shape[2] % 16 == 0 and batch.pictures.shape[3] % 16 == 0
        assert not batch.pictures[batch.segments == 0].any() and not batch.targets[batch.segments == 0].any()
        assert not batch.pictures[..., :3][batch.pictures[..., 3] == 0].any()
        for row, task in enumerate(TASKS[t] for t in batch.tasks):
            for place, index in enumerate(batch.records[row].tolist()):
                mine = batch.segments[row] == place + 1
                if index == NO_RECORD:
                    assert not mine.any() and batch.captions[row][place] == ""
                    continue
                tasks[task] += 1
                assert batch.captions[row][place] == records[index].caption
                pictures, indices = batch.pictures[row][mine], batch.layer_indices[row][mine].tolist()
                count = int(batch.targets[row][mine].sum()) - 1
                assert indices == [*range(count + 1), *([-1] if task is Task.IMAGE_TO_LAYERS else [])]
                assert 1 <= count <= min(LAYERS[index], 20) and len(pictures) <= batch.pictures.shape[1]
                layered = LayeredImage(layers=pictures[1 : count + 1], names=("",) * count)
                expected = layered.composite_8bit().astype(int)
                clear = (expected[..., 3] != 255)[..., None]  # where alpha is low, colour is known less well
                assert (np.abs(pictures[0] - expected) <= np.where(clear, 2, 1)).all()
    assert set(tasks) == {Task.IMAGE_TO_LAYERS, Task.TEXT_TO_LAYERS}


def test_layers_are_merged_where_a_row_has_no_room(source):
    config = dataclasses.replace(CONFIG, rows=1, epochs=1, buckets=dataclasses.replace(BUCKETS, row_tokens=6 * 4))
    config = dataclasses.replace(config, order=Order.SEQUENTIAL, tasks=TaskConfig())
    full = dataclasses.replace(config, buckets=dataclasses.replace(BUCKETS, resolutions=(32,)))
    complete = {
        b.records[r, s]: (b, r, s) for b in Loader.of_records(source, full) for r, s in np.argwhere(b.records >= 0)
    }
    merged = 0
    for batch in Loader.of_records(source, config):
        (index,) = batch.records[0][batch.records[0] >= 0][:1]
        count = int(batch.targets[0][batch.segments[0] == 1].sum()) - 1
        assert count <= (6 if batch.pictures.shape[2] * batch.pictures.shape[3] <= 32 * 32 else 4)
        other, row, place = complete[index]
        merged += count < min(LAYERS[index], 20)
        before = other.pictures[row][other.segments[row] == place + 1][0]
        now = batch.pictures[0][batch.segments[0] == 1][0]
        opaque = (before[..., 3] == 255) & (now[..., 3] == 255)
        assert np.abs(before.astype(int) - now)[opaque].max(initial=0) <= 1
    assert merged >= 3


def test_single_pictures_fill_the_rows(source):
    mix = ((Task.RECONSTRUCTION, 1.0),)
    buckets = BucketConfig(resolutions=(32,), multiple=16, row_tokens=4, aspect_ratios=((1, 1),))
    config = LoaderConfig(rows=4, buckets=buckets, tasks=TaskConfig(mix=mix), epochs=1)
    batches = list(Loader.of_records(source, config))
    assert {b.pictures.shape for b in batches} == {(4, 1, 32, 32, 4)} and len(batches) == 4
    assert sum(int(b.targets.sum()) for b in batches) == len(LAYERS)


@pytest.mark.full
def test_tasks_are_drawn_per_row_by_weight(source):
    mix = ((Task.TEXT_TO_RGB, 3.0), (Task.TEXT_TO_RGBA, 1.0))
    buckets = BucketConfig(resolutions=(16,), multiple=16, row_tokens=1, aspect_ratios=((1, 1),))
    config = LoaderConfig(rows=13, buckets=buckets, tasks=TaskConfig(mix=mix), epochs=40)
    batches = list(Loader.of_records(source, config))
    kinds = np.concatenate([b.target_kinds for b in batches])
    opaque = np.concatenate([(b.pictures[..., 3] == 255).all(axis=(1, 2, 3)) for b in batches])
    assert kinds.mean() == pytest.approx(0.75, abs=0.06) and opaque[kinds == 1].all() and not opaque[kinds == 0].all()
    drawn = {(int(b.records[r, 0]), int(b.tasks[r])) for b in batches for r in range(13)}
    assert len(drawn) == 2 * len(LAYERS)


@pytest.mark.parametrize(
    ("change", "processes", "message"),
    [
        ({}, Processes(index=0, count=4), "rows must be a multiple of the number of processes"),
        ({}, Processes(index=2, count=2), "process 2 of 2"),
        ({"rows": 14}, Processes(), "13 records for a batch of 14 rows"),
        ({"buckets": dataclasses.replace(BUCKETS, row_tokens=8)}, Processes(), "one layer has 3: raise row_tokens"),
    ],
)
def test_what_cannot_be_loaded_is_refused(source, change, processes, message):
    with pytest.raises(ValueError, match=message):
        Loader.of_records(source, dataclasses.replace(CONFIG, **change), processes=processes)


@pytest.mark.parametrize("change", [{"rows": 0}, {"max_layers": 0}, {"epochs": 0}])
def test_numbers_below_one_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is .* and must be at least 1"):
        dataclasses.replace(CONFIG, **change)


def test_a_record_without_layers_is_refused(source):
    class Hollow(type(source)):
        def metadata(self):
            found = super().metadata()
            return dataclasses.replace(found, layers=np.where(np.arange(len(self)) == 4, 0, found.layers))

    with pytest.raises(ValueError, match="004 has no layers"):
        Loader.of_records(Hollow(source.folders), CONFIG)


def test_a_state_of_other_records_or_settings_is_refused(source):
    state = Loader.of_records(source, CONFIG).state()
    for change in ({"seed": 4}, {"rows": 3}, {"max_layers": 9}):
        with pytest.raises(ValueError, match="restore it with those it was saved with"):
            Loader.of_records(source, dataclasses.replace(CONFIG, **change)).restore(state)


@pytest.mark.parametrize("workers", [Workers(), Workers(processes=1)])
@pytest.mark.full
def test_a_record_that_cannot_be_read_is_named(folder, tmp_path, workers):
    for i in range(3):
        LayeredImage.load(folder / "001").save(tmp_path / str(i))
    (tmp_path / "1" / "002.png").write_bytes(b"no picture")
    with (
        Loader.of_records(open_source(tmp_path), dataclasses.replace(CONFIG, rows=1), workers=workers) as loader,
        pytest.raises(Exception, match=f"{tmp_path / '1'} cannot be read"),
    ):
        list(loader)
