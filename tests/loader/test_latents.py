"""Cached latents as a source: the images of every task, for any threads and workers, and what it refuses."""

import numpy as np
import pytest

from qil_jax.loader.buckets import BucketConfig
from qil_jax.loader.config import LoaderConfig, Workers
from qil_jax.loader.latent_files import LatentIndex, LatentRecord, write_index, write_shard
from qil_jax.loader.latents import LatentSource, open_latents
from qil_jax.loader.loader import Loader
from qil_jax.loader.samples import RecordSamples, SampleSource
from qil_jax.loader.tasks import Subject, Task, TaskConfig
from qil_jax.records.sources import FolderSource

BUCKETS = BucketConfig(resolutions=(32,), aspect_ratios=((1, 1),), multiple=16, row_tokens=6 * 4)
CONFIG = LoaderConfig(rows=4, epochs=2, buckets=BUCKETS)
LAYERS, TEXT = 2, 5


def record(number: int) -> LatentRecord:
    """Latents whose values are 100 times the record's number, plus the image's."""
    latents = np.arange(LAYERS + 3)[:, None, None, None] + np.full((LAYERS + 3, 4, 4, 16), 100.0 * number)
    states = np.full((1 + number % TEXT, 3), float(number))
    return LatentRecord(latents=latents, states=states, size=(32, 32), caption=9)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> LatentSource:
    folder = tmp_path_factory.mktemp("latents")
    shards = [range(7), range(7, 12)]
    for number, members in enumerate(shards):
        write_shard(folder, "train", number, [record(i) for i in members], np.full((2, 3), -1.0))
    rows = ((32, 32, LAYERS, 9),) * 12
    index = LatentIndex(shards=tuple(map(len, shards)), vae="v", text_encoder="t", no_prompt=" ", rows=rows, text=TEXT)
    write_index(folder, "train", index)
    return open_latents(folder, "train")


@pytest.mark.parametrize(
    ("task", "images", "indices", "targets"),
    [
        (Task.IMAGE_TO_LAYERS, [0, 1, 2, 0], (0, 1, 2, -1), 3),
        (Task.TEXT_TO_LAYERS, [0, 1, 2], (0, 1, 2), 3),
        (Task.TEXT_TO_RGBA, [3], (0,), 1),
        (Task.TEXT_TO_RGB, [4], (0,), 1),
    ],
)
@pytest.mark.parametrize("number", [0, 6, 7, 11])
def test_a_task_gets_its_images(source, task, images, indices, targets, number):
    sample = source.sample(number, task, size=(32, 32), limit=LAYERS, rng=np.random.default_rng(0))
    assert sample.pictures.dtype == np.float32 and sample.pictures.shape == (len(images), 4, 4, 16)
    assert sample.pictures[:, 0, 0, 0].tolist() == [100 * number + i for i in images]
    assert (sample.layer_indices, sample.targets) == (indices, targets)
    assert sample.states is not None and sample.lengths is not None
    assert sample.lengths.tolist() == [1 + number % TEXT, 2]
    assert sample.states[..., 0].tolist() == [
        [number] * (1 + number % TEXT) + [0] * (TEXT - 1 - number % TEXT),
        [-1, -1] + [0] * (TEXT - 2),
    ]


@pytest.mark.parametrize("workers", [Workers(threads=6, ahead=3), Workers(processes=1)])
@pytest.mark.full
def test_threads_and_workers_change_nothing(source, workers):
    expected = list(Loader(source, CONFIG))
    with Loader(source, CONFIG, workers=workers) as loader:
        for batch, wanted in zip(loader, expected, strict=True):
            np.testing.assert_array_equal(batch.pictures, wanted.pictures)
            np.testing.assert_array_equal(batch.states, wanted.states)
            np.testing.assert_array_equal(batch.lengths, wanted.lengths)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"tasks": TaskConfig(mix=((Task.RECONSTRUCTION, 1.0),))}, "serve neither the task reconstruction"),
        ({"tasks": TaskConfig(mix=((Task.TEXT_TO_RGBA, 1.0),), subject=Subject.LAYER)}, "nor the subject layer"),
        ({"max_layers": 1}, "holds 2 layers of 32 x 32 pixels, but the loader wants at most 1 of 32 x 32"),
        ({"buckets": BucketConfig(resolutions=(16,), multiple=16, row_tokens=40)}, "at most 2 of 16 x 16"),
    ],
)
def test_what_was_not_encoded_is_refused(source, config, says):
    with pytest.raises(ValueError, match=says):
        Loader(source, LoaderConfig(**{"rows": 4, "buckets": BUCKETS, **config}))


def test_both_sources_are_sources_of_samples(source):
    samples = RecordSamples(FolderSource([]), CONFIG)
    assert isinstance(source, SampleSource) and isinstance(samples, SampleSource)
    with pytest.raises(ValueError, match="were given different configs"):
        samples.require(LoaderConfig(rows=4, tasks=TaskConfig(mix=((Task.TEXT_TO_RGB, 1.0),))), [], np.zeros(0, int))
