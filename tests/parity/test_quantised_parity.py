"""Quantised models against diffusers and transformers in full precision, with the released widths of a block."""

import gc
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkpoints import TRANSFORMER, VISION, build_tiny_checkpoint, randomise
from diffusers import QwenImageTransformer2DModel
from flax import nnx
from parity_inputs import layered, layout
from reference import ours
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from qil_jax.mesh import INFERENCE_RULES, single_device_mesh
from qil_jax.models.quantised import Quantisation, quantise
from qil_jax.weights import Component, load_component
from qil_jax.weights.quantise import quantise_checkpoint

torch.set_grad_enabled(False)
HOWS = tuple(Quantisation)
RELEASED = {"num_layers": 2, "num_attention_heads": 24, "attention_head_dim": 128, "axes_dims_rope": (16, 56, 56)}
GRID, LAYERS, WORDS = (3, 4), layered(2), 6
BLOCK_BYTES = 2 * 2 * (4 + 8 + 6) * 3072**2
"""Bytes of the quantised kernels of two blocks and their modulation."""
FILE = "transformer/diffusion_pytorch_model.safetensors"


def relative(actual, expected) -> float:
    """The root mean square of the difference over that of the reference."""
    actual, expected = np.asarray(actual, np.float64), expected.double().numpy()
    assert actual.shape == expected.shape and np.isfinite(actual).all()
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint with two blocks of the released width in bf16, inputs, and the velocity of diffusers in fp32.

    Weights have a standard deviation of one over the root of their inputs (0.018 in most maps), and the embedding of
    the target kind one of 0.02, with which shifts, scales and gates have 0.23.
    """
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    folder.mkdir()
    build_tiny_checkpoint(folder)
    shutil.rmtree(folder / "transformer")
    reference = randomise(QwenImageTransformer2DModel(**{**TRANSFORMER, **RELEASED}))
    reference.time_text_embed.addition_t_embedding.weight *= 0.02
    reference.to(torch.bfloat16).save_pretrained(folder / "transformer")
    random = torch.Generator().manual_seed(11)
    x = torch.randn(1, len(LAYERS) * GRID[0] * GRID[1], TRANSFORMER["in_channels"], generator=random)
    text = torch.randn(1, WORDS, TRANSFORMER["joint_attention_dim"], generator=random)
    velocity = reference.float()(
        hidden_states=x,
        encoder_hidden_states=text,
        encoder_hidden_states_mask=torch.ones(1, WORDS, dtype=torch.bool),
        timestep=torch.tensor([0.7]),
        img_shapes=[[(1, *GRID)] * len(LAYERS)],
        additional_t_cond=torch.tensor([0]),
        return_dict=False,
    )[0]
    del reference
    gc.collect()
    yield folder, (x.numpy(), text.numpy()), velocity
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize("how", [Quantisation.INT8, pytest.param(Quantisation.FP8, marks=pytest.mark.slow)])
def test_velocity_at_the_released_width(how, wide, tmp_path):
    folder, (x, text), expected = wide
    quantise_checkpoint(folder, tmp_path / "quantised", how, components=[Component.TRANSFORMER])
    before, after = ((each / FILE).stat().st_size for each in (folder, tmp_path / "quantised"))
    assert BLOCK_BYTES < after < 0.54 * before, "biases, norms and both ends stay in bf16, and each row has a scale"
    model = load_component(
        tmp_path / "quantised",
        Component.TRANSFORMER,
        mesh=single_device_mesh(),
        rules=INFERENCE_RULES,
        dtype=jnp.float32,
    )
    shutil.rmtree(tmp_path / "quantised")
    graph, state = nnx.split(model)
    arrays = jax.tree.leaves(state)
    assert sum(a.nbytes for a in arrays if a.dtype == how.dtype) == BLOCK_BYTES
    where = layout(GRID, LAYERS, torch.ones(1, WORDS, dtype=torch.bool))
    run = jax.jit(lambda state, *a: nnx.merge(graph, state)(*a, sigma=jnp.array([0.7]), target_kind=jnp.array([0])))
    error = relative(run(state, jnp.asarray(x), jnp.asarray(text), where), expected)
    print(f"velocity, {how}: {error:.2%}; {before / 1e6:.1f} MB -> {after / 1e6:.1f} MB")
    assert 0.0005 < error <= 0.02


@pytest.mark.parametrize("how", HOWS)
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
