"""The encoders: batches sharded by rows give what pictures and prompts one by one give."""

import jax.numpy as jnp
import numpy as np
import pytest

from qil_jax.encoders.image_encoder import Autoencoder
from qil_jax.encoders.pixels import to_float, to_uint8
from qil_jax.encoders.text_encoder import PromptEncoder
from qil_jax.encoders.tokenizer import PromptTokenizer
from qil_jax.mesh import INFERENCE_RULES, Sharding, single_device_mesh
from qil_jax.shipped import shipped_checkpoint
from qil_jax.weights import Checkpoint, Component

MESH = single_device_mesh()
SHARDING = Sharding(MESH, INFERENCE_RULES)


def test_eight_bits_come_back():
    pixels = np.arange(256, dtype=np.uint8)
    expected = pixels.astype(np.float32) / np.float32(255) * 2 - 1  # as the reference
    np.testing.assert_array_equal(to_float(pixels), expected)
    np.testing.assert_allclose(to_float(jnp.asarray(pixels)), expected, atol=2e-7)  # XLA multiplies by 1 / 127.5
    for values in (pixels, jnp.asarray(pixels)):
        np.testing.assert_array_equal(to_uint8(to_float(values)), pixels)
    np.testing.assert_array_equal(to_uint8(jnp.array([-3.0, 3.0])), [0, 255])


@pytest.mark.full
def test_pictures_in_rows():
    autoencoder = Autoencoder(
        Checkpoint(shipped_checkpoint()).load(Component.VAE, SHARDING, dtype="float32"), mesh=MESH
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 64, 4), np.uint8)
    rows = np.asarray(autoencoder.encode_rows(jnp.asarray(pixels)))
    flat = autoencoder.encode(to_float(pixels.reshape(6, 32, 64, 4)))
    assert rows.dtype == np.float32 and rows.shape == (2, 3, 4, 8, 16)
    np.testing.assert_allclose(rows.reshape(flat.shape), flat, atol=1e-5)


@pytest.mark.parametrize("max_tokens", [7, 40])
@pytest.mark.full
def test_prompts_in_rows(max_tokens):
    tokenizer = PromptTokenizer(Checkpoint(shipped_checkpoint()).tokenizer)
    encoder = PromptEncoder(
        tokenizer, Checkpoint(shipped_checkpoint()).load(Component.TEXT_ENCODER, SHARDING, dtype="float32"), mesh=MESH
    )
    prompts = ["", " ", "a red barn in the snow"]
    alone = encoder(prompts, max_tokens=max_tokens)
    ids, lengths = encoder.padded_ids(prompts, max_tokens=max_tokens)
    rows = np.asarray(encoder.encode_rows(jnp.asarray(ids), jnp.asarray(lengths)))
    assert ids.shape == (3, encoder.drop + max_tokens) and rows.shape[:2] == (3, max_tokens)
    for prompt, length, states in zip(prompts, lengths - encoder.drop, rows, strict=True):
        assert len(alone[prompt]) == length
        np.testing.assert_allclose(states[:length], alone[prompt], atol=1e-5)
        assert not states[length:].any()
