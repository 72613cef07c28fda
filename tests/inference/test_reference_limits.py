"""Requests on which the reference pipeline breaks or answers wrongly (diffusers 0.42.1): ours does them right.

The zero token, the missing clamp of tiles, empty layers and zero-sized buckets stand with their own modules' tests.
"""

import copy

import numpy as np
import pytest
from PIL import Image

from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import Request, Settings
from tools import make_demo_checkpoint as demo

SETTINGS = Settings(steps=2)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Pipeline:
    folder = tmp_path_factory.mktemp("demo") / "checkpoint"
    demo.write_checkpoint(folder)
    return Pipeline.load(folder)


def ask(image: Image.Image, layers: int, **changes) -> Request:
    return Request(image=image, layers=layers, resolution=96, **changes)


def picture(width: int, height: int, mode: str = "RGBA", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.full
def test_two_pictures_keep_all_their_layers(pipeline):
    """The reference slices a batch by L + 1 after it dropped the composites: lists of 4 and 2 for L = 3."""
    requests = [ask(picture(96, 96, seed=i), 3, seed=i, prompt="one prompt") for i in range(2)]
    together = pipeline.decompose(requests, SETTINGS)
    assert [len(d.layered.layers) for d in together] == [3, 3]
    for request, joint in zip(requests, together, strict=True):
        alone = pipeline.decompose([request], SETTINGS)[0]
        assert np.abs(joint.layered.layers.astype(int) - alone.layered.layers).max() <= 1


@pytest.mark.full
def test_two_samples_of_two_pictures(pipeline):
    requests = [ask(picture(96, 96, seed=i), 2, seed=5, samples=2) for i in range(2)]
    results = pipeline.decompose(requests, SETTINGS)
    assert [(d.request.image is requests[i // 2].image, d.sample) for i, d in enumerate(results)] == [
        (True, 0),
        (True, 1),
        (True, 0),
        (True, 1),
    ]
    flat = [d.latents.ravel() for d in results]
    assert all(np.abs(flat[i] - flat[j]).max() > 0.01 for i in range(4) for j in range(i))


@pytest.mark.full
def test_pictures_keep_their_own_sizes(pipeline):
    requests = [ask(picture(*size), 1) for size in ((200, 100), (100, 200))]
    wide, high = pipeline.decompose(requests, SETTINGS)
    assert wide.layered.size == high.layered.size[::-1] and wide.layered.size[0] > wide.layered.size[1]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P"])
@pytest.mark.full
def test_pictures_without_alpha_are_opaque(pipeline, mode):
    plain = picture(96, 96, "RGB").convert(mode)
    results = [pipeline.decompose([ask(image, 1)], SETTINGS)[0] for image in (plain, plain.convert("RGBA"))]
    np.testing.assert_array_equal(results[0].latents, results[1].latents)
    assert results[0].input[..., 3].min() == 255


@pytest.mark.full
def test_latents_come_with_the_layers(pipeline):
    result = pipeline.decompose([ask(picture(96, 96), 2)], SETTINGS)[0]
    assert result.latents.shape == (3, 12, 12, 16)
    again = pipeline.autoencoder.decode(result.latents)
    np.testing.assert_array_equal(again, np.concatenate([result.composite[None], result.layered.layers]))


@pytest.mark.full
def test_an_empty_prompt_is_a_prompt(pipeline):
    results = [pipeline.decompose([ask(picture(96, 96), 1, prompt=p)], SETTINGS)[0] for p in ("", "x")]
    assert np.abs(results[0].latents - results[1].latents).max() > 0


@pytest.mark.full
def test_a_latent_of_four_channels_is_not_mistaken_for_a_picture(tmp_path, monkeypatch):
    """With z_dim 4 the reference takes the RGBA picture for latents and never encodes it."""
    configs = copy.deepcopy(demo.CONFIGS)
    configs["vae"] |= {"z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    configs["transformer"] |= {"in_channels": 16, "out_channels": 4}
    monkeypatch.setattr(demo, "CONFIGS", configs)
    demo.write_checkpoint(tmp_path / "checkpoint")
    pipeline = Pipeline.load(tmp_path / "checkpoint")
    black, noisy = (
        pipeline.decompose([ask(image, 2)], SETTINGS)[0] for image in (Image.new("RGBA", (96, 96)), picture(96, 96))
    )
    assert black.latents.shape == (3, 12, 12, 4)
    assert np.abs(black.latents - noisy.latents).max() > 1e-3


@pytest.mark.full
def test_the_composite_and_the_condition_act_on_the_layers(pipeline):
    """Composite first, condition at index -1: layers see both."""
    start = np.random.default_rng(0).standard_normal((1, 3, 12, 12, 16)).astype(np.float32)
    base = ask(picture(96, 96), 2, latents=start)
    moved = start.copy()
    moved[:, 0] += 1
    results = [
        pipeline.decompose([request], SETTINGS)[0].latents[1:]
        for request in (
            base,
            ask(base.image, 2, latents=moved),
            ask(picture(96, 96, seed=3), 2, latents=start),
        )
    ]
    assert np.abs(results[0] - results[1]).max() > 1e-4
    assert np.abs(results[0] - results[2]).max() > 1e-4


def test_injected_latents_of_another_shape_are_refused(pipeline):
    start = np.zeros((1, 3, 12, 12, 16), np.float32)
    with pytest.raises(ValueError, match="this picture needs"):
        pipeline.decompose([ask(picture(96, 96), 3, latents=start)], SETTINGS)
