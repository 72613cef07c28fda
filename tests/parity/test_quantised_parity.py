"""Quantised language models against transformers in full precision; for the transformer see test_released_width."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkpoints import VISION, randomise
from reference import ours, relative
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from qil_jax.models.quantised import Quantisation, quantise

torch.set_grad_enabled(False)
HOWS = tuple(Quantisation)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.full
def test_hidden_states_of_prompts(how, tmp_path):
    """After two layers of ten maps in series the error is at most twice that of one map."""
    text = {"hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 1408}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text |= {"num_hidden_layers": 2, "vocab_size": 1000, "rope_parameters": rope, "tie_word_embeddings": False}
    vision = {**VISION, "out_hidden_size": 512}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    reference = randomise(Qwen2_5_VLForConditionalGeneration(config))
    ids = torch.arange(3, 23)[None]
    expected = reference.model.language_model(input_ids=ids).last_hidden_state
    model = ours(reference, "text_encoder", Path(tmp_path))
    kernel = torch.from_numpy(np.array(model.language.layers.up.kernel[...]))
    quantise(model, how)
    up = model.language.layers.up
    one = relative(up.kernel[...].astype(jnp.float32) * up.scale[...][:, None], kernel)
    error = relative(model(jnp.asarray(ids.numpy()), jnp.ones(ids.shape, bool)), expected)
    print(f"hidden states, {how}: {error:.2%}, one map {one:.2%}")
    assert one / 2 < error <= 2 * one
