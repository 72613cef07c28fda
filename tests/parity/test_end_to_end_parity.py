"""The whole pipeline: against diffusers', in mixed batches, and on meshes."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from checkpoints import EVEN_TEXT, EVEN_TRANSFORMER, VAE, build_tiny_checkpoint
from PIL import Image
from reference import error

from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import Request, Settings
from qil_jax.mesh import MeshShape, make_mesh

torch.set_grad_enabled(False)
EXAMPLE = Path(__file__).parents[2] / "examples" / "chelsea.png"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return folder, build_tiny_checkpoint(folder)


@pytest.fixture(scope="module", autouse=True)
def small_bucket():
    """Pictures of 160x160 instead of 640x640, for both sides: a hundredth of the attention."""
    import diffusers.pipelines.qwenimage.pipeline_qwenimage_layered as theirs

    from qil_jax.inference import images
    from qil_jax.inference import pipeline as pipeline_module

    patch = pytest.MonkeyPatch()
    ours_before, theirs_before = images.bucket_size, theirs.calculate_dimensions
    for module in (images, pipeline_module):
        patch.setattr(module, "bucket_size", lambda w, h, r, **k: ours_before(w, h, r // 4, **k))
    patch.setattr(theirs, "calculate_dimensions", lambda area, ratio: theirs_before(area / 16, ratio))
    yield
    patch.undo()


def picture(width: int, height: int, *, clear: bool = False) -> Image.Image:
    image = Image.open(EXAMPLE).convert("RGBA").resize((width, height))
    if clear:
        image.putalpha(Image.linear_gradient("L").resize((width, height)))
    return image


def noise(layers: int, height: int, width: int) -> np.ndarray:
    shape = (1, layers + 1, height // 8, width // 8, VAE["z_dim"])
    return np.random.default_rng(layers).standard_normal(shape).astype(np.float32)


def test_equals_diffusers(checkpoint):
    folder, reference = checkpoint
    image, layers, steps = picture(300, 210, clear=True), 4, 10
    start = noise(layers, 128, 192)
    request = Request(image=image, layers=layers, prompt="a cat on a mat", latents=start)
    ours = Pipeline.load(folder).decompose([request], Settings(steps=steps))[0].layered.layers
    packed = reference._pack_latents(
        torch.from_numpy(start.transpose(0, 1, 4, 2, 3)), 1, VAE["z_dim"], 16, 24, layers + 1
    )
    reference.set_progress_bar_config(disable=True)
    theirs = reference(
        image=image,
        prompt="a cat on a mat",
        negative_prompt=" ",
        true_cfg_scale=4.0,
        cfg_normalize=True,
        num_inference_steps=steps,
        layers=layers,
        resolution=640,
        latents=packed,
    ).images[0]
    difference = np.abs(ours.astype(int) - np.stack([np.asarray(layer) for layer in theirs]).astype(int))
    assert ours.std() > 10, "the pictures must not be flat"
    assert (difference == 0).mean() >= 0.99
    assert difference.max() <= 1


PROMPT_60 = "a very long description of a cat, " * 8


def mixed() -> list[Request]:
    return [
        Request(image=picture(300, 210), layers=2, prompt="cat", seed=1),
        Request(image=picture(200, 290), layers=5, prompt=PROMPT_60, seed=2, negative_prompt="blurry"),
    ]


def test_a_picture_does_not_depend_on_its_batch(checkpoint):
    pipeline, settings = Pipeline.load(checkpoint[0]), Settings(steps=4)
    together = pipeline.decompose(mixed(), settings)
    assert [len(d.layered.layers) for d in together] == [2, 5]
    for request, joint in zip(mixed(), together, strict=True):
        alone = pipeline.decompose([request], settings)[0]
        assert error(joint.latents, alone.latents) <= 1e-5


def test_guidance_is_per_picture(checkpoint):
    """A picture without a negative prompt is not guided, whatever its neighbours are."""
    pipeline, settings = Pipeline.load(checkpoint[0]), Settings(steps=3)
    plain = Request(image=picture(210, 210), layers=1, negative_prompt=None, prompt="x", seed=4)
    together = pipeline.decompose([plain, mixed()[0]], settings)[0]
    alone = pipeline.decompose([plain], settings)[0]
    off = pipeline.decompose([plain], Settings(steps=3, guidance=1.0))[0]
    assert error(together.latents, alone.latents) <= 1e-5
    assert error(alone.latents, off.latents) == 0


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


@pytest.mark.parametrize(
    "shape", ["data=8", "fsdp=8", "tensor=4,data=2", "fsdp=2,context=2,tensor=2", "cfg=2,tensor=4", "context=8"]
)
def test_meshes_give_the_single_device_result(even, shape):
    folder, alone = even
    pipeline = Pipeline.load(folder, mesh=make_mesh(MeshShape.parse(shape)))
    sharded = pipeline.decompose(mixed(), Settings(steps=2))
    for one, many in zip(alone, sharded, strict=True):
        assert error(many.latents, one.latents) <= 2e-5
    assert len(jax.devices()) == 8
