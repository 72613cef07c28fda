"""The images that the model is given and those that it generates, for each task."""

import numpy as np
import pytest
from hypothesis import given
from layer_stacks import SIZE, stacks

from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite_8bit
from qil_jax.loader.samples import make_sample
from qil_jax.loader.tasks import Subject, Task, TaskConfig
from qil_jax.records.record import Record


def a_record(ground_alpha: int = 255) -> Record:
    ground = np.full((8, 8, 4), (10, 20, 30, ground_alpha), np.uint8)
    thing = np.full((3, 4, 4), (200, 100, 50, 128), np.uint8)
    layers = [
        BoxedLayer(pixels=ground, left=0, top=0, name="a ground"),
        BoxedLayer(pixels=thing, left=1, top=2, name="a thing"),
        BoxedLayer(pixels=thing[:2], left=4, top=4, name="another"),
    ]
    return Record(layers=tuple(layers), size=(8, 8), caption="all of it")


def sample_of(task: Task, record: Record, seed: int = 0, **config):
    return make_sample(task, record, TaskConfig(**config), np.random.default_rng(seed))


@pytest.mark.parametrize("task", [Task.TEXT_TO_LAYERS, Task.IMAGE_TO_LAYERS])
@given(stacks())
@pytest.mark.full
def test_layers_and_their_composite(task, layers):
    record = Record(layers=tuple(layers), size=SIZE, caption="c")
    sample = sample_of(task, record)
    count = len(layers)
    assert len(sample.pictures) == task.pictures(count) == len(sample.layer_indices) and sample.targets == count + 1
    np.testing.assert_array_equal(sample.pictures[0], composite_8bit(layers, SIZE))
    np.testing.assert_array_equal(sample.pictures[1 : count + 1], record.to_layered_image().layers)
    assert sample.layer_indices[: count + 1] == tuple(range(count + 1)) and sample.caption == "c"
    if task is Task.IMAGE_TO_LAYERS:
        assert sample.layer_indices[-1] == -1
        np.testing.assert_array_equal(sample.pictures[-1], sample.pictures[0])


def test_rgb_is_opaque_over_white():
    sample = sample_of(Task.TEXT_TO_RGB, a_record(ground_alpha=0))
    assert (sample.pictures[..., 3] == 255).all() and (sample.pictures[0, 0, 0] == 255).all()
    assert sample.pictures[0, 2, 1].tolist() == [227, 177, 152, 255]
    assert Task.TEXT_TO_RGB.target_kind == 1 and {t.target_kind for t in Task if t is not Task.TEXT_TO_RGB} == {0}


def test_the_foreground_is_all_but_an_opaque_ground():
    sample = sample_of(Task.TEXT_TO_RGBA, a_record())
    assert sample.pictures[0, 0, 0].tolist() == [0] * 4 and sample.pictures[0, 2, 1].tolist() == [200, 100, 50, 128]
    assert sample.pictures[0, 4, 4, 3] == 192 and sample.caption == "all of it"
    whole = sample_of(Task.TEXT_TO_RGBA, a_record(ground_alpha=254))
    assert (whole.pictures[..., 3] >= 254).all()


def test_single_layers_have_their_names_as_captions():
    seen = {}
    for seed in range(40):
        sample = sample_of(Task.TEXT_TO_RGBA, a_record(), seed, subject=Subject.LAYER)
        seen[sample.caption] = sample.pictures[0]
    assert sorted(seen) == ["a thing", "another"]
    assert np.flatnonzero(seen["another"][..., 3].any(axis=1)).tolist() == [4, 5]


@pytest.mark.full
def test_reconstruction_draws_every_picture_and_flattens_as_many_as_told():
    record = a_record(ground_alpha=0)
    count, opaque, colours = 3000, 0, set()
    shapes = {}
    for seed in range(count):
        (picture,) = sample_of(Task.RECONSTRUCTION, record, seed).pictures
        if (picture[..., 3] == 255).all():
            opaque += 1
            colours.add(tuple(picture[0, 0, :3].tolist()))
        else:
            key = picture.tobytes()
            shapes[key] = shapes.get(key, 0) + 1
    assert opaque / count == pytest.approx(0.3, abs=0.03)
    assert len(colours) == 27 and {c for colour in colours for c in colour} == {0, 128, 255}
    assert len(shapes) == 4 and min(shapes.values()) > 0.2 * (count - opaque)


def test_flattened_pictures_are_blends():
    record = a_record(ground_alpha=0)
    for seed in range(50):
        plain = sample_of(Task.RECONSTRUCTION, record, seed, flatten=0.0).pictures[0].astype(float)
        flat = sample_of(Task.RECONSTRUCTION, record, seed, flatten=1.0).pictures[0]
        alpha = plain[..., 3:] / 255
        ground = np.where(np.isin(flat[0, 0, :3], (0, 255)), flat[0, 0, :3], 127.5)
        expected = plain[..., :3] * alpha + ground * (1 - alpha)
        assert np.abs(flat[..., :3] - expected).max() <= 0.51 and (flat[..., 3] == 255).all()


def test_the_mix_is_kept():
    mix = ((Task.TEXT_TO_RGB, 3.0), (Task.IMAGE_TO_LAYERS, 1.0))
    config, rng = TaskConfig(mix=mix), np.random.default_rng(0)
    drawn = [config.choose(rng) for _ in range(4000)]
    assert drawn.count(Task.TEXT_TO_RGB) / 4000 == pytest.approx(0.75, abs=0.03)
    assert config.pictures(4) == 6 and TaskConfig(mix=mix[:1]).pictures(4) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mix": ()}, "one task or more"),
        ({"mix": ((Task.TEXT_TO_RGB, 0.0),)}, "positive"),
        ({"flatten": 2.0}, "between"),
    ],
)
def test_bad_mixes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TaskConfig(**change)
