"""One language layer and one block of the vision tower of the released widths against transformers: in fp32 and bf16.

All have the same weights, rounded to bf16.
"""

import gc
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from captions import IMAGE, pictures, tiny_writer
from flax import nnx
from reference import error, mean_error
from transformers import Qwen2_5_VLForConditionalGeneration
from vision_language import hidden_states, padded, picture_patches, prompt_ids, tower_error, written

from qil_jax.mesh import INFERENCE_RULES, Sharding, single_device_mesh
from qil_jax.models.decoding import prefill, read_token
from qil_jax.models.qwen2_5_vl import ON_ONE_CPU, VisionLanguage, text_encoder_of
from qil_jax.models.stack import scan_blocks_in_place
from qil_jax.weights import Checkpoint, Component, TextEncoderPart

pytestmark = pytest.mark.full

torch.set_grad_enabled(False)
RELEASED = {
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "num_hidden_layers": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "vision": {
        "depth": 1,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3420,
        "patch_size": 14,
        "window_size": 112,
    },
}
PROMPTS = prompt_ids([39, 17, 40], IMAGE)


def load(folder: Path, part: Component | TextEncoderPart, dtype: jnp.dtype) -> nnx.Module:
    return Checkpoint(folder).load(part, Sharding(single_device_mesh(), INFERENCE_RULES), dtype=dtype)


@dataclass(frozen=True)
class Wide:
    """The folder of the weights, the reference and our model in fp32, and the reference's hidden states."""

    folder: Path
    reference: Qwen2_5_VLForConditionalGeneration
    model: VisionLanguage
    exact: np.ndarray
    in_bf16: np.ndarray


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    reference = tiny_writer(**RELEASED)
    for parameter in reference.parameters():  # buffers stay, which wavelengths are
        parameter.data = parameter.data.bfloat16()
    reference.save_pretrained(folder / Component.TEXT_ENCODER)
    theirs = hidden_states(reference, *PROMPTS)
    for parameter in reference.parameters():
        parameter.data = parameter.data.float()
    exact = hidden_states(reference, *PROMPTS)
    model = load(folder, TextEncoderPart.VISION_LANGUAGE, jnp.float32)
    yield Wide(folder, reference, model, exact, theirs)
    del reference, model
    gc.collect()
    shutil.rmtree(folder)


def our_states(encoder) -> np.ndarray:
    ids, mask = PROMPTS
    return np.asarray(encoder(jnp.asarray(ids), jnp.asarray(mask)))[mask]


def test_hidden_states(wide: Wide):
    assert wide.model.config.hidden_size == 3584
    assert error(our_states(text_encoder_of(wide.model.language)), wide.exact) <= 5e-5


def test_bf16_is_no_further_off_than_that_of_transformers(wide: Wide):
    found = our_states(load(wide.folder, Component.TEXT_ENCODER, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    assert 0 < mean_error(found, wide.exact) <= 1.2 * mean_error(wide.in_bf16, wide.exact)


def test_the_vision_tower(wide: Wide):
    """A block with windows, and the merger."""
    tower = wide.model.visual
    assert tower.config.window_side == 4 and 0 not in tower.config.fullatt_block_indexes
    assert tower_error(wide.reference, tower, *picture_patches([(14, 10), (12, 18)], 1176)) <= 5e-5


def test_captions(wide: Wide):
    """A prompt with a picture, and a token that is read after it, with kernels in place."""
    inputs = pictures([(8, 12)], wide.model.config.vision.patch_width)
    _, expected = written(wide.reference, inputs, 0, 2)
    assert wide.model.config.head_dim == 128
    graph, state = nnx.split(wide.model)

    @jax.jit
    def run(state, batch):
        model = nnx.merge(graph, state)
        first, cache = prefill(model, batch, room=1, how=ON_ONE_CPU)
        return first, read_token(model, jnp.argmax(first, axis=-1), cache, fold=scan_blocks_in_place)[0]

    assert error(np.concatenate(run(state, padded(inputs, wide.model, extra=2))), expected) <= 5e-5
