"""VLD-MMDiT against diffusers' QwenImageTransformer2DModel, fp32."""

import jax
import jax.numpy as jnp
import pytest
import torch
from checkpoints import TRANSFORMER, tiny_transformer
from flax import nnx
from parity_inputs import layered, layout
from reference import error, ours

from qil_jax.models.rope import LayerIndex

torch.set_grad_enabled(False)


def compare(reference, model, grid, layers, words, *, padded: int = 2) -> float:
    """Error of one batch of two, the second with padded text, at unlike noise levels and target kinds."""
    config = reference.config
    random = torch.Generator().manual_seed(11)
    tokens = len(layers) * grid[0] * grid[1]
    x = torch.randn(2, tokens, config.in_channels, generator=random)
    text = torch.randn(2, words, config.joint_attention_dim, generator=random)
    mask = torch.ones(2, words, dtype=torch.bool)
    mask[1, words - padded :] = False
    sigma = torch.tensor([0.7, 0.31])
    kind = torch.tensor([0, 1]) if config.use_additional_t_cond else None
    expected = reference(
        hidden_states=x,
        encoder_hidden_states=text,
        encoder_hidden_states_mask=mask,
        timestep=sigma,
        img_shapes=[[(1, *grid)] * len(layers)] * 2,
        additional_t_cond=kind,
        return_dict=False,
    )[0]
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, *a: nnx.merge(graph, state)(*a[:3], sigma=a[3], target_kind=a[4]))
    arrays = [jnp.asarray(a.numpy()) for a in (x, text)]
    numbers = [jnp.asarray(sigma.numpy()), None if kind is None else jnp.asarray(kind.numpy())]
    return error(run(state, *arrays, layout(grid, layers, mask), *numbers), expected)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    reference = tiny_transformer()
    return reference, ours(reference, "transformer", tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("count", "grid", "words"),
    [
        (1, (4, 6), 7),
        (3, (5, 3), 5),  # odd, not square
        (20, (3, 4), 9),
        (3, (1, 2), 4),  # L + 1 is more than half the grid
        (2, (7, 7), 6),
    ],
)
def test_layered(tiny, count, grid, words):
    assert compare(*tiny, grid, layered(count), words) <= 2e-5


@pytest.mark.full
def test_text_to_image_transformer(tmp_path):
    """Qwen-Image's own transformer: plain rotary positions, no target kinds, one picture."""
    reference = tiny_transformer(use_additional_t_cond=False, use_layer3d_rope=False)
    model = ours(reference, "transformer", tmp_path)
    assert compare(reference, model, (5, 4), (LayerIndex.COMPOSITE,), 6) <= 2e-5


@pytest.mark.full
def test_the_composite_influences_the_layers(tiny):
    _, model = tiny
    grid, layers = (4, 4), layered(2)
    where = layout(grid, layers, torch.ones(1, 3, dtype=torch.bool))
    x = jax.random.normal(jax.random.key(0), (1, 64, TRANSFORMER["in_channels"]))
    text = jax.random.normal(jax.random.key(1), (1, 3, TRANSFORMER["joint_attention_dim"]))
    numbers = {"sigma": jnp.array([0.5]), "target_kind": jnp.array([0])}
    run = nnx.jit(lambda model, x: model(x, text, where, **numbers))
    before, after = (run(model, y) for y in (x, x.at[:, :16].add(1)))
    assert float(jnp.abs(before - after)[:, 16:48].max()) > 1e-3


def test_target_kind_is_required_exactly_where_configured(tiny):
    _, model = tiny
    with pytest.raises(ValueError, match="target_kind"):
        model.modulation(jnp.array([0.5]), None)
