"""The denoiser: one compiled step, passes computed in each way, lowering of what is abstract, lengths."""

from typing import Any

import jax
import numpy as np
import pytest
from denoisers import CONFIG, UNLIKE, abstract_denoiser, batch_on, denoise, denoiser_on, item, mesh_of
from reference import error

from qil_jax.choices import Passes
from qil_jax.encoders.lengths import image_bucket, row_bucket, text_bucket
from qil_jax.errors import QilError
from qil_jax.flow import Rescale
from qil_jax.inference.images import bucket_size
from qil_jax.kernels import Spread


@pytest.fixture(scope="module")
def single():
    return denoiser_on(mesh_of("data=1"))


def memory(lowered: jax.stages.Lowered) -> Any:
    return lowered.compile().memory_analysis()


@pytest.mark.full
def test_one_program_serves_any_number_of_steps(single, compiled):
    mesh, few = single.sharding.mesh, [item(1, 8, 10, 7, seed=3)]
    assert np.isfinite(denoise(single, batch_on(mesh, few), few)).all()
    assert len(compiled) >= 1
    many = [item(1, 10, 8, 9, seed=4, steps=7)]
    tables = [single.modulator(many[0].sigmas)]
    compiled.clear()
    steps = []
    single(batch_on(mesh, many), tables, rescale=Rescale.NORM, on_step=lambda done, total: steps.append((done, total)))
    assert compiled == [] and steps == [(i, 7) for i in range(1, 8)]


@pytest.mark.full
def test_tokens_between_steps_are_those_of_fewer_steps_and_the_batch_stays(single):
    batch, seen = batch_on(single.sharding.mesh), []
    before = batch.tokens.copy()
    last = denoise(single, batch, on_tokens=lambda done, tokens: seen.append(tokens))
    np.testing.assert_array_equal(batch.tokens, before)
    np.testing.assert_array_equal(seen[-1], last)
    assert len(seen) == 3 and error(seen[0], seen[1]) > 0.01
    given = ~batch.is_target
    np.testing.assert_array_equal(last[given], before[given])


@pytest.mark.full
def test_sequential_passes_give_what_a_batch_of_both_gives(single):
    sequential = denoiser_on(single.sharding.mesh, passes=Passes.SEQUENTIAL)
    batch = batch_on(single.sharding.mesh, passes=Passes.SEQUENTIAL)
    assert error(denoise(sequential, batch), denoise(single, batch)) <= 2e-6
    both, half = (memory(one.lower(batch, Rescale.NORM)[1]).temp_size_in_bytes for one in (single, sequential))
    assert half < 0.75 * both


@pytest.mark.parametrize("items", [UNLIKE, UNLIKE[:1]], ids=["two", "one"])
@pytest.mark.full
def test_a_mesh_of_both_passes_gives_the_bytes_of_sequential_passes(items):
    """One device that computes the passes one after the other does the sums that each of two devices does."""
    alone, both = mesh_of("data=1"), mesh_of("cfg=2")
    one = denoise(denoiser_on(alone, passes=Passes.SEQUENTIAL), batch_on(alone, items), items)
    np.testing.assert_array_equal(one, denoise(denoiser_on(both), batch_on(both, items), items))


MESHES = ("data=8", "fsdp=8", "tensor=4,data=2", "context=8", "fsdp=2,context=2,tensor=2", "cfg=2,tensor=4")


@pytest.mark.parametrize(
    ("shape", "spread"), [*((shape, Spread.ULYSSES) for shape in MESHES), ("context=8", Spread.RING)]
)
@pytest.mark.full
def test_meshes_give_the_single_device_result(single, shape, spread):
    """Two pictures of unlike layer counts and schedules, in sequences of 57 tokens at most, which no axis divides."""
    items = (item(1, 8, 6, 7), item(2, 6, 8, 50, seed=1), item(17, 2, 6, 9, seed=2))
    lengths = [(len(one.noise) + 1) * one.grid(2)[0] * one.grid(2)[1] for one in items]
    assert max(lengths) == 57 and len(set(lengths)) == 3
    mesh = mesh_of(shape)
    expected = denoise(single, batch_on(single.sharding.mesh, items), items)
    found = denoise(denoiser_on(mesh, spread=spread), batch_on(mesh, items), items)
    for one, many, length in zip(expected, found, lengths, strict=False):
        assert error(many[:length], one[:length]) <= 2e-5


@pytest.mark.full
def test_the_passes_meet_in_one_all_gather():
    step = denoiser_on(mesh_of("cfg=2")).lower(batch_on(mesh_of("cfg=2")), Rescale.NORM)[1]
    text = str(step.compile().as_text())
    collectives = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    assert {name: text.count(f" {name}(") for name in collectives if f" {name}(" in text} == {"all-gather": 1}


@pytest.mark.parametrize("passes", Passes)
@pytest.mark.full
def test_without_guidance_a_step_is_one_pass(passes):
    mesh, plain = mesh_of("data=1"), [item(1, 8, 10, 7, guided=False)]
    denoiser = denoiser_on(mesh, passes=passes)
    counts = []
    for items in (plain, [item(1, 8, 10, 7)]):
        step = denoiser.lower(batch_on(mesh, items, passes=passes), Rescale.NORM)[1]
        counts.append(memory(step).temp_size_in_bytes)
    batch = batch_on(mesh, plain, passes=passes)
    assert batch.passes == 1 and counts[0] <= counts[1]
    assert np.isfinite(denoise(denoiser, batch, plain)).all()


def test_sequential_passes_on_a_mesh_of_both_are_refused():
    with pytest.raises(QilError, match="cfg=2"):
        denoiser_on(mesh_of("cfg=2"), passes=Passes.SEQUENTIAL)


@pytest.mark.parametrize("mesh", ["data=1", "cfg=2,tensor=4"])
@pytest.mark.full
def test_an_abstract_model_lowers_to_the_programs_that_run(mesh):
    devices = mesh_of(mesh)
    batch = batch_on(devices)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    abstract = abstract_denoiser(devices).lower(shapes, Rescale.NORM)
    for ours, theirs in zip(abstract, denoiser_on(devices).lower(batch, Rescale.NORM), strict=True):
        assert ours.as_text() == theirs.as_text()
    table, step = map(memory, abstract)
    modulation = 2 * CONFIG.num_layers * 6 * CONFIG.width**2 * 4
    assert table.argument_size_in_bytes > modulation / devices.shape["tensor"]
    assert step.alias_size_in_bytes > 0


def test_lengths_are_few_and_waste_little():
    """At 640, L = 4, all aspect ratios: three lengths of images, and less than 6 % of padding in the worst case."""
    sizes = {bucket_size(int(4000 * r**0.5), int(4000 / r**0.5), 640) for r in np.geomspace(1 / 4, 4, 2001)}
    tokens = {6 * (w // 16) * (h // 16) for w, h in sizes}
    assert len(tokens) > 12 and len({image_bucket(count) for count in tokens}) <= 3
    worst = max(
        (image_bucket(count) + text_bucket(words)) / (count + words) - 1 for count in tokens for words in range(6, 513)
    )
    assert worst < 0.065 and image_bucket(9600) <= 1.014 * 9600
    average = np.mean([(image_bucket(count) + text_bucket(60)) / (count + 60) - 1 for count in tokens])
    assert average < 0.03
    assert len({text_bucket(words) for words in range(1, 513)}) == 9
    assert all(text_bucket(n) >= n and image_bucket(n) >= n for n in range(1, 3000))
    assert [row_bucket(n, 6) for n in range(1, 7)] == [1, 2, 4, 4, 6, 6]
