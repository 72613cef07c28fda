"""Loss and gradients of the transformer on eight devices are those of one: on every axis, in every spread of attention.

Rows hold different numbers of layers, one of them two samples, and no axis divides their numbers of tokens.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array
from reference import error

from qil_jax.flow.loss import FlowLoss
from qil_jax.kernels import Spread, attend_for
from qil_jax.mesh import INFERENCE_RULES, TRAINING_RULES, MeshShape, Sharding, constrain, make_mesh, shardings
from qil_jax.models.attention import AttentionKind
from qil_jax.models.axes import Axis
from qil_jax.models.rope import image_positions, text_positions
from qil_jax.models.vld_mmdit import MMDiTConfig, TokenLayout, VLDMMDiT
from qil_jax.training.batches import NO_TARGET, FlowBatch
from qil_jax.training.objectives import Compute, flow_objective
from qil_jax.training.parameters import Network, Params, params_of

pytestmark = pytest.mark.full

SMALL = MMDiTConfig(
    num_layers=2,
    num_attention_heads=8,
    attention_head_dim=8,
    joint_attention_dim=16,
    in_channels=4,
    out_channels=1,
    axes_dims_rope=(4, 2, 2),
    use_additional_t_cond=True,
    use_layer3d_rope=True,
)
ROWS, IMAGE, TEXT, GRID = 8, 37, 11, (3, 3)


@functools.cache
def batch() -> FlowBatch:
    """Rows of 1 to 3 layers with composite and condition; the last has two samples of one picture and condition."""
    random = np.random.default_rng(3)
    normal = lambda *size: jnp.asarray(random.standard_normal((ROWS, *size)), jnp.float32)
    counts = [1 + row % 2 for row in range(ROWS)]
    positions, segments = np.zeros((ROWS, IMAGE, 3), np.int32), np.zeros((ROWS, IMAGE), np.int32)
    kinds = np.full((ROWS, IMAGE), NO_TARGET, np.int32)
    words, area = np.zeros((ROWS, TEXT), np.int32), GRID[0] * GRID[1]
    for row, layers in enumerate(counts):
        tokens = (layers + 2) * area
        positions[row, :tokens] = image_positions(GRID, (0, *range(1, layers + 1), -1))
        segments[row, :tokens], words[row, : 5 + row % 6] = 1, 1
        kinds[row, : tokens - area] = np.repeat(np.minimum(np.arange(layers + 1), 2), area)
    segments[-1, 2 * area :], words[-1, 4:9] = np.where(segments[-1, 2 * area :], 2, 0), 2
    return FlowBatch(
        clean=normal(IMAGE, SMALL.in_channels),
        text=normal(TEXT, SMALL.joint_attention_dim),
        layout=TokenLayout(
            image_positions=positions,
            text_positions=np.stack([text_positions(TEXT, offset=4)] * ROWS),
            image_segments=segments,
            text_segments=words,
        ),
        weights=jnp.asarray((kinds != NO_TARGET) / np.sum(kinds != NO_TARGET), jnp.float32),
        kinds=jnp.asarray(kinds),
        target_kinds=jnp.arange(ROWS) % 2,
        rows=jnp.arange(ROWS),
        picture_tokens=jnp.full(ROWS, area),
    )


def padded(ways: int) -> FlowBatch:
    """The batch with text and image tokens padded to multiples of the mesh's shards."""

    def longer(x: Array, value: int = 0) -> Array:
        extra = -x.shape[1] % ways if x.ndim > 1 else 0
        return jnp.pad(x, [(0, 0), (0, extra), *[(0, 0)] * (x.ndim - 2)][: x.ndim], constant_values=value)

    whole = jax.tree.map(longer, batch())
    return dataclasses.replace(whole, kinds=longer(batch().kinds, NO_TARGET))


@functools.cache
def model() -> VLDMMDiT:
    model = VLDMMDiT(SMALL, rngs=nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    random = np.random.default_rng(1)
    nnx.update(model, jax.tree.map(lambda x: x + 0.05 * random.standard_normal(x.shape).astype(np.float32), state))
    return model


def loss_and_gradients(params: Params, batch: FlowBatch, compute: Compute) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    objective = flow_objective(Network(model()), FlowLoss(), compute)
    run = jax.jit(jax.value_and_grad(lambda *given: objective(*given)[0]))
    return jax.device_get(run(params, {}, batch, jax.random.key(0)))


@functools.cache
def alone() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return loss_and_gradients(params_of(model()), jax.tree.map(jnp.asarray, batch()), Compute())


def on(sharding: Sharding, spread: Spread, kind: AttentionKind) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    params = jax.device_put(params_of(model()), shardings(model(), sharding))
    axes = lambda x: (Axis.BATCH, Axis.TOKENS, None)[: x.ndim]
    put = lambda x: jax.device_put(x, sharding.named(axes(x)))
    attend = attend_for(kind, spread, heads=SMALL.num_attention_heads, sharding=sharding, backward=True)
    compute = Compute(attend=attend, constrain=constrain(sharding))
    return loss_and_gradients(params, jax.tree.map(put, padded(sharding.ways(Axis.RESIDUAL))), compute)


@pytest.mark.parametrize(
    ("mesh", "spread", "kind"),
    [
        pytest.param("data=8", Spread.NONE, AttentionKind.XLA, marks=pytest.mark.slow),
        ("fsdp=8", Spread.NONE, AttentionKind.XLA_CHUNKED),
        ("data=2,tensor=4", Spread.NONE, AttentionKind.XLA_BY_HEAD),
        ("context=8", Spread.ULYSSES, AttentionKind.XLA),
        ("context=8", Spread.RING, AttentionKind.XLA),
        ("fsdp=2,context=2,tensor=2", Spread.GATHER, AttentionKind.SPLASH),
        pytest.param("cfg=2,tensor=4", Spread.NONE, AttentionKind.XLA, marks=pytest.mark.slow),
    ],
)
def test_devices_change_nothing(mesh, spread, kind):
    rules = INFERENCE_RULES if "cfg" in mesh else TRAINING_RULES
    loss, gradients = on(Sharding(make_mesh(MeshShape.parse(mesh)), rules), spread, kind)
    wanted_loss, wanted = alone()
    assert abs(loss - wanted_loss) <= 2e-5 * abs(wanted_loss)
    assert gradients.keys() == wanted.keys()
    for path, value in wanted.items():
        assert np.abs(value).max() > 0, path
        assert error(gradients[path], value) <= 2e-5, path


def test_no_axis_divides_the_tokens():
    assert all(n % ways for n in (IMAGE, TEXT, IMAGE + TEXT + 1) for ways in (2, 4, 8))
