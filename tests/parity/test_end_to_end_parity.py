"""The whole pipeline: against diffusers', in mixed batches, and on meshes."""

import jax
import numpy as np
import pytest
import torch
from checkpoints import EVEN_TEXT, EVEN_TRANSFORMER, assert_same_layers, build_tiny_checkpoint, layers_of
from parity_inputs import mixed, noise, picture
from reference import error

from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import Request, Settings
from qil_jax.mesh import INFERENCE_RULES, MeshShape, Sharding, make_mesh

torch.set_grad_enabled(False)
pytestmark = pytest.mark.usefixtures("small_bucket")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return folder, build_tiny_checkpoint(folder)


def test_equals_diffusers(checkpoint):
    folder, reference = checkpoint
    image, layers, steps = picture(300, 210, clear=True), 4, 10
    start = noise(layers, 128, 192)
    request = Request(image=image, layers=layers, prompt="a cat on a mat", latents=start)
    ours = Pipeline.load(folder).decompose([request], Settings(steps=steps))[0].layered.layers
    assert_same_layers(ours, layers_of(reference, image, start, layers=layers, steps=steps))


@pytest.mark.full
def test_a_picture_does_not_depend_on_its_batch(checkpoint):
    pipeline, settings = Pipeline.load(checkpoint[0]), Settings(steps=4)
    together = pipeline.decompose(mixed(), settings)
    assert [len(d.layered.layers) for d in together] == [2, 5]
    for request, joint in zip(mixed(), together, strict=True):
        alone = pipeline.decompose([request], settings)[0]
        assert error(joint.latents, alone.latents) <= 1e-5


@pytest.mark.full
def test_guidance_is_per_picture(checkpoint):
    """A picture without a negative prompt is not guided, whatever its neighbours are."""
    pipeline, settings = Pipeline.load(checkpoint[0]), Settings(steps=3)
    plain = Request(image=picture(210, 210), layers=1, negative_prompt=None, prompt="x", seed=4)
    together = pipeline.decompose([plain, mixed()[0]], settings)[0]
    alone = pipeline.decompose([plain], settings)[0]
    off = pipeline.decompose([plain], Settings(steps=3, guidance=1.0))[0]
    assert error(together.latents, alone.latents) <= 1e-5
    assert error(alone.latents, off.latents) == 0


@pytest.mark.full
def test_samples_seeds_and_callbacks(checkpoint):
    pipeline, settings = Pipeline.load(checkpoint[0]), Settings(steps=3)
    request = Request(image=picture(64, 64), layers=1, prompt="x", samples=2, seed=9)
    steps, tokens = [], []
    first = pipeline.decompose([request], settings, on_step=lambda done, total: steps.append((done, total)))
    again = pipeline.decompose([request], settings, on_tokens=lambda done, x: tokens.append((done, x.copy())))
    assert [d.sample for d in first] == [0, 1]
    assert error(first[0].latents, first[1].latents) > 0.1
    assert all(np.array_equal(a.latents, b.latents) for a, b in zip(first, again, strict=True))
    assert sorted(steps) == [(1, 3), (2, 3), (3, 3)]
    assert sorted(done for done, _ in tokens) == [1, 2, 3]
    assert tokens[-1][1].shape[0] == 2


@pytest.fixture(scope="module")
def even(tmp_path_factory):
    folder = tmp_path_factory.mktemp("even")
    build_tiny_checkpoint(folder, transformer=EVEN_TRANSFORMER, text=EVEN_TEXT)
    return folder, Pipeline.load(folder).decompose(mixed(), Settings(steps=2))


MESHES = ("data=8", "fsdp=8", "tensor=4,data=2", "context=8")


@pytest.mark.parametrize(
    "shape",
    ["fsdp=2,context=2,tensor=2", "cfg=2,tensor=4", *(pytest.param(shape, marks=pytest.mark.slow) for shape in MESHES)],
)
@pytest.mark.full
def test_meshes_give_the_single_device_result(even, shape):
    folder, alone = even
    pipeline = Pipeline.load(folder, sharding=Sharding(make_mesh(MeshShape.parse(shape)), INFERENCE_RULES))
    sharded = pipeline.decompose(mixed(), Settings(steps=2))
    for one, many in zip(alone, sharded, strict=True):
        assert error(many.latents, one.latents) <= 2e-5
    assert len(jax.devices()) == 8
