"""Sizes and pixels of pictures, and latents as tokens, against diffusers."""

import numpy as np
import pytest
import torch
from diffusers import QwenImageLayeredPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.qwenimage.pipeline_qwenimage_layered import calculate_dimensions
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qil_jax.inference.images import ImageError, bucket_size, preprocess
from qil_jax.models.latents import pack, unpack


@given(st.integers(2, 16384), st.integers(2, 16384), st.sampled_from([96, 640, 1024]))
def test_sizes_are_the_reference_sizes(width, height, resolution):
    expected = tuple(map(int, calculate_dimensions(resolution * resolution, width / height)[:2]))
    if 0 in expected:  # the reference goes on with an empty picture
        with pytest.raises(ImageError, match="collapses"):
            bucket_size(width, height, resolution)
    else:
        assert bucket_size(width, height, resolution) == expected


@pytest.mark.parametrize("size", [(300, 210), (97, 411), (640, 640), (1500, 900)])
def test_pixels_are_the_reference_pixels(size):
    noise = np.random.default_rng(1).integers(0, 256, (*size[::-1], 4), np.uint8)
    image = Image.fromarray(noise)
    width, height = bucket_size(*size, 640)
    processor = VaeImageProcessor(vae_scale_factor=16, vae_latent_channels=16)
    expected = processor.preprocess(processor.resize(image, height, width), height, width)
    seen, pixels = preprocess(image, 640)
    assert seen.shape == (height, width, 4)
    np.testing.assert_allclose(pixels, expected[0].permute(1, 2, 0).numpy(), atol=2e-7)
    assert torch.is_tensor(expected) and pixels.min() < -0.5 and pixels.max() > 0.5


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))
def test_tokens_are_the_reference_s_and_come_back(pictures, rows, cols, z):
    latents = np.random.default_rng(0).standard_normal((pictures, 2 * rows, 2 * cols, z)).astype(np.float32)
    tokens = pack(latents, 2)
    ordered = torch.from_numpy(latents.transpose(0, 3, 1, 2).copy())[None]
    expected = QwenImageLayeredPipeline._pack_latents(ordered, 1, z, 2 * rows, 2 * cols, pictures)
    np.testing.assert_array_equal(tokens, expected[0].numpy())
    np.testing.assert_array_equal(unpack(tokens, 2, (rows, cols)), latents)
