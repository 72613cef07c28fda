"""The vision tower against transformers' Qwen2.5-VL, fp32; at the released width in test_released_vision_language."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkpoints import tiny_text_encoder
from reference import our_vision_language
from vision_language import picture_patches, see, tower_error

torch.set_grad_enabled(False)

TINY = {
    "depth": 2,
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_heads": 3,
    "in_channels": 5,
    "patch_size": 6,
    "temporal_patch_size": 7,
    "window_size": 48,
    "fullatt_block_indexes": [0],
}
"""All sizes differ, and windows are of 4 x 4 tokens as in the release."""
GRIDS = [(2, 2), (46, 70), (10, 14), (30, 2)]
"""Patches of pictures from 28 x 28 to 644 x 980 pixels, most with partial windows on either side."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    reference = tiny_text_encoder(vision=TINY)
    return reference, our_vision_language(reference, tmp_path_factory.mktemp("tiny")).visual


@pytest.mark.full
def test_mixed_sizes_in_one_padded_batch(tiny):
    reference, tower = tiny
    assert tower_error(reference, tower, *picture_patches(GRIDS, tower.config.patch_width)) <= 5e-5


@pytest.mark.parametrize("grid", [(2, 2), (22, 18)])
def test_a_picture_alone(tiny, grid):
    reference, tower = tiny
    assert tower_error(reference, tower, *picture_patches([grid], tower.config.patch_width)) <= 5e-5


def test_padding_is_without_effect(tiny):
    """Padding may hold anything, and a row may hold nothing else."""
    _, tower = tiny
    patches, grids = picture_patches([(6, 4), (0, 0), (4, 10)], tower.config.patch_width, count=64)
    other = patches.copy()
    for picture, count in zip(other, grids.prod(1), strict=True):
        picture[count:] = 100
    one, two = (np.asarray(see(tower, jnp.asarray(x), jnp.asarray(grids))) for x in (patches, other))
    for k, count in enumerate(grids.prod(1) // 4):
        np.testing.assert_array_equal(one[k, :count], two[k, :count])
    assert np.isfinite(two).all() and not np.array_equal(one, two)
