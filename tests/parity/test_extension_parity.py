"""Components of Qwen-Image, extended to those of a layered model, begin as diffusers' own (arXiv 2512.15603, 3.1)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkpoints import EVEN_TRANSFORMER, VAE, tiny_transformer, tiny_vae
from flax import nnx
from parity_inputs import channels_last, layout, pixels
from reference import error

from qil_jax.mesh import TRAINING_RULES, MeshShape, Sharding, make_mesh, single_device_mesh
from qil_jax.models.rope import LayerIndex
from qil_jax.weights import Architecture, Checkpoint, Component
from qil_jax.weights.extension import new_parts

torch.set_grad_enabled(False)
MESHES = [None, MeshShape(fsdp=4, tensor=2)]


def extended(reference, component: Component, folder, shape: MeshShape | None = None) -> nnx.Module:
    """Our layered model from the files that a reference module saves."""
    reference.save_pretrained(folder / component)
    mesh = single_device_mesh() if shape is None else make_mesh(shape)
    return Checkpoint(folder).load(component, Sharding(mesh, TRAINING_RULES), dtype=jnp.float32, layered=True)


@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.full
def test_the_transformer_begins_as_qwen_image_s(tmp_path, shape):
    """On one picture at layer 0 with text, whatever the kind of the target."""
    reference = tiny_transformer(**EVEN_TRANSFORMER, use_additional_t_cond=False, use_layer3d_rope=False)
    model = extended(reference, Component.TRANSFORMER, tmp_path, shape)
    grid, words, random = (5, 4), 6, torch.Generator().manual_seed(11)
    x = torch.randn(2, 20, reference.config.in_channels, generator=random)
    text = torch.randn(2, words, reference.config.joint_attention_dim, generator=random)
    mask = torch.ones(2, words, dtype=torch.bool)
    mask[1, words - 2 :] = False
    sigma = torch.tensor([0.7, 0.31])
    expected = reference(
        hidden_states=x,
        encoder_hidden_states=text,
        encoder_hidden_states_mask=mask,
        timestep=sigma,
        img_shapes=[[(1, *grid)]] * 2,
        return_dict=False,
    )[0]
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, *a, **k: nnx.merge(graph, state)(*a, **k))
    arrays = [jnp.asarray(a.numpy()) for a in (x, text)]
    numbers = {"sigma": jnp.asarray(sigma.numpy()), "target_kind": jnp.array([0, 1])}
    found = run(state, *arrays, layout(grid, (LayerIndex.COMPOSITE,), mask), **numbers)
    assert error(found, expected) <= 2e-5


@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.full
def test_the_vae_begins_as_the_rgb_vae_with_opaque_alpha(tmp_path, shape):
    reference = tiny_vae(input_channels=3)
    model = extended(reference, Component.VAE, tmp_path, shape)
    x = pixels(40, 24)  # whatever alpha is
    encoded = reference.encode(x[:, :3]).latent_dist.mode()
    mode = nnx.jit(lambda model, x: model.encode(x).mode())(model, jnp.asarray(channels_last(x)))
    assert error(mode, channels_last(encoded)) <= 2e-5
    z = torch.randn(1, VAE["z_dim"], 1, 5, 3, generator=torch.Generator().manual_seed(1))
    decoded = nnx.jit(lambda model, z: model.decode(z))(model, jnp.asarray(channels_last(z)))
    assert error(decoded[..., :3], channels_last(reference.decode(z).sample)) <= 2e-5
    np.testing.assert_array_equal(decoded[..., 3], 1.0)


def test_what_is_new_is_named(tmp_path):
    reference = tiny_transformer(use_additional_t_cond=False, use_layer3d_rope=False)
    reference.save_pretrained(tmp_path / "transformer")
    transformer = Checkpoint(tmp_path)[Component.TRANSFORMER].architecture
    assert new_parts(transformer) == {
        "use_additional_t_cond": True,
        "use_layer3d_rope": True,
        "modulation/addition/embedding": 0.0,
    }
    assert new_parts(transformer.layered) == {}
    assert new_parts(Architecture(Component.VAE, {**VAE, "input_channels": 3})) == {
        "input_channels": 4,
        "encoder/conv_in/kernel[:, :, 3:, :]": 0.0,
        "decoder/conv_out/kernel[:, :, :, 3:]": 0.0,
        "decoder/conv_out/bias[3:]": 1.0,
    }
    assert new_parts(Architecture(Component.VAE, VAE)) == {}
