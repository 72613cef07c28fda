"""The vision tower against transformers' Qwen2.5-VL, fp32."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkpoints import tiny_text_encoder
from flax import nnx
from reference import error, our_vision_language

from qil_jax.models.vision_tower import VisionTower

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
run = nnx.jit(lambda tower, patches, grids: tower(patches, grids))


def batch(grids: list[tuple[int, int]], width: int, *, count: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Patches of pictures, padded with what a picture might hold."""
    sizes = np.array(grids, np.int32)
    patches = np.random.default_rng(5).standard_normal((len(grids), max(count, *sizes.prod(1)), width))
    return patches.astype(np.float32), sizes


def compare(reference, tower: VisionTower, patches: np.ndarray, grids: np.ndarray) -> float:
    """The largest error of a picture in a padded batch, where the reference sees each picture alone."""
    actual = np.asarray(run(tower, jnp.asarray(patches), jnp.asarray(grids)))
    assert np.isfinite(actual).all()
    errors = []
    for tokens, pixels, (rows, columns) in zip(actual, patches, grids, strict=True):
        picture = torch.from_numpy(pixels[: rows * columns])
        expected = reference.model.visual(picture, torch.tensor([[1, rows, columns]])).pooler_output
        errors.append(error(tokens[: len(expected)], expected))
    return max(errors)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    reference = tiny_text_encoder(vision=TINY)
    return reference, our_vision_language(reference, tmp_path_factory.mktemp("tiny")).visual


@pytest.mark.full
def test_mixed_sizes_in_one_padded_batch(tiny):
    reference, tower = tiny
    assert compare(reference, tower, *batch(GRIDS, tower.config.patch_width)) <= 5e-5


@pytest.mark.parametrize("grid", [(2, 2), (22, 18)])
def test_a_picture_alone(tiny, grid):
    reference, tower = tiny
    assert compare(reference, tower, *batch([grid], tower.config.patch_width)) <= 5e-5


def test_padding_is_without_effect(tiny):
    """Padding may hold anything, and a row may hold nothing else."""
    _, tower = tiny
    patches, grids = batch([(6, 4), (0, 0), (4, 10)], tower.config.patch_width, count=64)
    other = patches.copy()
    for picture, count in zip(other, grids.prod(1), strict=True):
        picture[count:] = 100
    one, two = (np.asarray(run(tower, jnp.asarray(x), jnp.asarray(grids))) for x in (patches, other))
    for k, count in enumerate(grids.prod(1) // 4):
        np.testing.assert_array_equal(one[k, :count], two[k, :count])
    assert np.isfinite(two).all() and not np.array_equal(one, two)


def test_released_width(tmp_path):
    """A block with windows, and the merger."""
    sizes = {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 8}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    vision = {"depth": 1, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420}
    reference = tiny_text_encoder(**sizes, num_hidden_layers=1, vocab_size=600, rope_parameters=rope, vision=vision)
    tower = our_vision_language(reference, tmp_path).visual
    assert tower.config.window_side == 4 and 0 not in tower.config.fullatt_block_indexes
    assert compare(reference, tower, *batch([(14, 10), (12, 18)], 1176)) <= 5e-5
