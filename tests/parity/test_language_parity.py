"""The language model against transformers' Qwen2.5-VL, fp32; at the released width in test_released_vision_language."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkpoints import tiny_text_encoder
from reference import error, ours
from vision_language import hidden_states, prompt_ids

torch.set_grad_enabled(False)


@pytest.mark.full
def test_tiny(tmp_path):
    reference = tiny_text_encoder(num_key_value_heads=1)
    ids, mask = prompt_ids([39, 17, 40], 500)
    found = np.asarray(ours(reference, "text_encoder", tmp_path)(jnp.asarray(ids), jnp.asarray(mask)))
    assert error(found[mask], hidden_states(reference, ids, mask)) <= 1e-5
