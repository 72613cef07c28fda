"""Sums that are reduced and scattered over `tensor` are those of one device, and no other collective is left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import error

from qil_jax.kernels import Spread, attend_for, with_scattered_sums
from qil_jax.mesh import INFERENCE_RULES, Axis, MeshShape, Sharding, constrain, make_mesh, place, single_device_mesh
from qil_jax.models.attention import AttentionKind
from qil_jax.models.products import matmul
from qil_jax.models.vld_mmdit import Backbone, MMDiTConfig, ModulationTable, TokenLayout

SMALL = MMDiTConfig(
    num_layers=2,
    num_attention_heads=4,
    attention_head_dim=8,
    joint_attention_dim=12,
    in_channels=4,
    out_channels=1,
    axes_dims_rope=(4, 2, 2),
)
TOKENS = (Axis.BATCH, Axis.TOKENS, None)


def inputs() -> tuple:
    random = np.random.default_rng(4)
    normal = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)
    layout = TokenLayout(
        image_positions=jnp.asarray(random.integers(-4, 9, (2, 16, 3))),
        text_positions=jnp.asarray(random.integers(9, 12, (2, 8, 3))),
        image_segments=jnp.ones((2, 16), jnp.int32),
        text_segments=jnp.asarray([[1] * 8, [1] * 3 + [0] * 5], jnp.int32),
    )
    table = ModulationTable(image=normal(2, 1, 6, 32), text=normal(2, 1, 6, 32), out=normal(1, 2, 32))
    return normal(2, 16, 4), normal(2, 8, 12), layout, table


def backbone() -> Backbone:
    made = Backbone(SMALL, rngs=nnx.Rngs(0))
    nnx.update(made, jax.tree.map(lambda x: x + 0.1, nnx.state(made, nnx.Param)))
    return made


@pytest.mark.parametrize("text", ["tensor=4,data=2", "cfg=2,tensor=4", "context=2,fsdp=2,tensor=2"])
@pytest.mark.full
def test_the_velocity_is_that_of_one_device(text):
    sharding, model = Sharding(make_mesh(MeshShape.parse(text)), INFERENCE_RULES), backbone()
    image, words, layout, table = inputs()
    wanted = model(image, words, layout, table)
    place(model, sharding)
    put = lambda x: jax.device_put(x, sharding.named(TOKENS[: x.ndim]))
    pin = constrain(sharding)
    attend = attend_for(AttentionKind.XLA, Spread.ULYSSES, heads=4, sharding=sharding)
    graph, state = nnx.split(with_scattered_sums(model, sharding))
    run = jax.jit(lambda state, x, y, where: nnx.merge(graph, state)(x, y, where, table, attend=attend, constrain=pin))
    given = (state, put(image), put(words), jax.tree.map(put, layout))
    assert error(run(*given), wanted) <= 2e-5
    program = str(jax.make_jaxpr(run)(*given))
    assert program.count("= reduce_scatter[") == 4  # attention and MLP of both streams


@pytest.mark.full
def test_one_device_and_low_ranks_keep_their_products():
    model = backbone()
    assert with_scattered_sums(model, Sharding(single_device_mesh(), INFERENCE_RULES)) is model
    changed = with_scattered_sums(model, Sharding(make_mesh(MeshShape(tensor=8)), INFERENCE_RULES))
    products = [b.blocks.image.mlp_out.matmul for b in (model, changed)]
    assert products[0] is matmul and products[1] is not matmul
    assert changed.blocks.image.mlp_in.matmul is matmul
    assert changed.blocks.image.out.kernel[...] is model.blocks.image.out.kernel[...]
