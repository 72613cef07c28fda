"""The language model against transformers' Qwen2.5-VL, fp32."""

import jax.numpy as jnp
import numpy as np
import torch
from checkpoints import TEXT, tiny_text_encoder
from reference import error, ours

torch.set_grad_enabled(False)


def compare(reference, encoder, lengths) -> float:
    """Error over valid tokens of a batch that is padded on the right."""
    longest = max(lengths)
    ids = np.random.default_rng(3).integers(0, 500, (len(lengths), longest))
    mask = np.arange(longest) < np.array(lengths)[:, None]
    expected = reference.model(
        input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int)), output_hidden_states=True
    ).hidden_states[-1]
    actual = np.asarray(encoder(jnp.asarray(ids), jnp.asarray(mask)))
    return error(actual[mask], expected.numpy()[mask])


def test_tiny(tmp_path):
    reference = tiny_text_encoder(num_key_value_heads=1)
    assert compare(reference, ours(reference, "text_encoder", tmp_path), [39, 17, 40]) <= 1e-5


def test_released_width(tmp_path):
    sizes = {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    reference = tiny_text_encoder(**sizes, num_hidden_layers=1, vocab_size=600, rope_parameters=rope)
    assert TEXT["hidden_size"] != 3584
    assert compare(reference, ours(reference, "text_encoder", tmp_path), [12, 25]) <= 5e-5
