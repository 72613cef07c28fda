"""A backbone rotated by halves computes what the stored order does, with biases, norms, LoRA and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import error

from qil_jax.mesh import INFERENCE_RULES, MeshShape, Sharding, make_mesh, place
from qil_jax.models.axes import Axis
from qil_jax.models.halves import rotated_by_halves
from qil_jax.models.layers import LowRank
from qil_jax.models.rope import Rotation
from qil_jax.models.vld_mmdit import Backbone, MMDiTConfig, ModulationTable, TokenLayout

SMALL = MMDiTConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    joint_attention_dim=12,
    in_channels=4,
    out_channels=1,
    axes_dims_rope=(4, 6, 6),
)
RANDOM = np.random.default_rng(2)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RANDOM.standard_normal(shape), jnp.float32)


def backbone() -> Backbone:
    """Every parameter is random, and the queries of images have a LoRA."""
    made = Backbone(SMALL, rngs=nnx.Rngs(0))
    q, d = made.blocks.image.q, SMALL.width
    factor = lambda *shape, axes: nnx.Param(normal(*shape), axes=(Axis.BLOCK, *axes))
    q.lora = LowRank(factor(2, d, 3, axes=(Axis.EMBED, None)), factor(2, 3, d, axes=(None, Axis.HEADS)), 0.5)
    state = nnx.state(made, nnx.Param)
    nnx.update(made, jax.tree.map(lambda x: x + 0.2 * normal(*x.shape), state))
    return made


def inputs() -> tuple:
    image, text, width = 12, 5, SMALL.width
    positions = lambda n: jnp.asarray(RANDOM.integers(-4, 9, (2, n, 3)))
    layout = TokenLayout(
        image_positions=positions(image),
        text_positions=positions(text),
        image_segments=jnp.ones((2, image), jnp.int32),
        text_segments=jnp.ones((2, text), jnp.int32),
    )
    table = ModulationTable(image=normal(2, 2, 6, width), text=normal(2, 2, 6, width), out=normal(2, 2, width))
    return normal(2, image, 4), normal(2, text, 12), layout, table


def values_and_gradients(model: Backbone, given: tuple, change) -> tuple:
    graph, state = nnx.split(model, nnx.Param)
    loss = lambda state: jnp.sum(jnp.square(change(nnx.merge(graph, state))(*given)))
    return jax.jit(jax.value_and_grad(loss))(state)


@pytest.mark.full
def test_values_and_gradients_are_the_same():
    model, given = backbone(), inputs()
    value, gradients = values_and_gradients(model, given, lambda b: b)
    changed, found = values_and_gradients(model, given, rotated_by_halves)
    assert abs(changed - value) <= 1e-5 * value
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(gradients), strict=True):
        assert error(one, other) <= 2e-5


@pytest.mark.full
def test_the_backbone_that_was_given_is_left_as_it_was():
    model, given = backbone(), inputs()
    halves = rotated_by_halves(model)
    rotations = [stream.rotation for b in (model, halves) for stream in (b.blocks.image, b.blocks.text)]
    assert rotations == [Rotation.INTERLEAVED] * 2 + [Rotation.HALVES] * 2
    kernels = [b.blocks.image.q.kernel[...] for b in (model, halves, rotated_by_halves(halves))]
    assert not np.array_equal(kernels[0], kernels[1]) and np.array_equal(kernels[1], kernels[2])
    assert halves.blocks.image.v.kernel[...] is model.blocks.image.v.kernel[...]
    assert error(halves(*given), model(*given)) <= 1e-5


@pytest.mark.full
def test_parameters_stay_where_they_are():
    model = backbone()
    place(model, Sharding(make_mesh(MeshShape(fsdp=2, context=2, tensor=2)), INFERENCE_RULES))
    before, after = (nnx.to_flat_state(nnx.state(b, nnx.Param)) for b in (model, rotated_by_halves(model)))
    for (path, one), (_, other) in zip(before, after, strict=True):
        assert one[...].sharding == other[...].sharding, path


def test_an_abstract_backbone_stays_abstract():
    halves = rotated_by_halves(nnx.eval_shape(backbone))
    assert halves.blocks.text.rotation is Rotation.HALVES
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(nnx.state(halves, nnx.Param)))
