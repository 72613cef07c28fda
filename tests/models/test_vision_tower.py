"""The vision tower by itself: its config, where patches lie, its memory, and meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qil_jax.mesh import INFERENCE_RULES, Axis, MeshShape, Sharding, constrain, make_mesh, place
from qil_jax.models.attention import AttentionKind
from qil_jax.models.config import ConfigError
from qil_jax.models.qwen2_5_vl import Qwen2_5VLConfig, VisionLanguage
from qil_jax.models.vision_tower import PatchLayout, VisionConfig, VisionTower
from qil_jax.weights.released import CONFIGS
from qil_jax.weights.tables.entries import Component

RELEASED = CONFIGS[Component.TEXT_ENCODER]
SMALL = VisionConfig(
    depth=2, hidden_size=128, intermediate_size=171, num_heads=8, out_hidden_size=48, fullatt_block_indexes=(1,)
)
"""The feed-forward width does not divide by 2, as that of the release not by 8."""


def test_both_layouts_of_the_config():
    assert Qwen2_5VLConfig.from_json(RELEASED).vision == VisionConfig()
    assert Qwen2_5VLConfig.from_json({**RELEASED, "vision_config": {}}).vision == VisionConfig()
    old = {**RELEASED["vision_config"], "in_chans": 4, "window_size": 56, "fullatt_block_indexes": [0, 8]}
    new = {key: value for key, value in old.items() if key != "in_chans"} | {"in_channels": 4}
    new |= {"rope_parameters": {"rope_type": "axial", "rope_theta": 500.0}}
    made = [Qwen2_5VLConfig.from_json({**RELEASED, "vision_config": each}).vision for each in (old, new)]
    expected = {"in_channels": 4, "window_size": 56, "fullatt_block_indexes": (0, 8)}
    assert made == [VisionConfig(**expected), VisionConfig(**expected, rope_theta=500.0)]


def test_tokens_of_another_width_than_the_language_models_are_refused():
    config = Qwen2_5VLConfig.from_json({**RELEASED, "vision_config": {"out_hidden_size": 5120}})
    with pytest.raises(ConfigError, match="out_hidden_size 5120 is not the language model's hidden_size 3584"):
        nnx.eval_shape(lambda: VisionLanguage(config, rngs=nnx.Rngs(0)))


def test_patches_lie_token_by_token():
    """2 x 3 tokens of 2 x 2 patches, windows of 2 x 2 tokens."""
    config = VisionConfig(window_size=56)
    layout = PatchLayout.of(jnp.asarray([[4, 6], [0, 0]]), 28, config)
    expected = [(2 * r + y, 2 * c + x) for r in range(2) for c in range(3) for y in range(2) for x in range(2)]
    np.testing.assert_array_equal(np.asarray(layout.positions)[0, :24], expected)
    windows = np.asarray(layout.windows)
    np.testing.assert_array_equal(windows[0, :24:4], [1, 1, 2, 1, 1, 2])
    for ids in (windows, np.asarray(layout.pictures)):
        assert ids[0, :24].all() and not ids[0, 24:].any() and not ids[1].any()


@pytest.mark.full
def test_memory_does_not_grow_with_the_square_of_a_picture():
    """A picture of 1024 x 1024 in the release: 16 heads of 5476 patches each."""
    config = VisionConfig(depth=1, hidden_size=64, intermediate_size=8, out_hidden_size=8)
    scores = 4 * 16 * 5476**2
    graph, state = nnx.split(nnx.eval_shape(lambda: VisionTower(config, rngs=nnx.Rngs(0))))
    inputs = jax.ShapeDtypeStruct((1, 5476, 1176), jnp.float32), jax.ShapeDtypeStruct((1, 2), jnp.int32)

    def temporaries(**options) -> int:
        run = jax.jit(lambda state, *a: nnx.merge(graph, state)(*a, **options))
        memory = run.lower(state, *inputs).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporaries(kind=AttentionKind.XLA) > scores
    assert temporaries() < scores / 16


@pytest.mark.full
def test_a_mesh_does_not_change_the_result():
    sharding = Sharding(make_mesh(MeshShape.parse("fsdp=2,context=2,tensor=2")), INFERENCE_RULES)
    grids = jnp.asarray([(10, 14), (2, 2)])
    patches = jax.random.normal(jax.random.key(0), (2, 160, 1176))
    tower, random = nnx.eval_shape(lambda: VisionTower(SMALL, rngs=nnx.Rngs(0))), np.random.default_rng(1)
    values = lambda x: jnp.asarray(random.normal(0, 0.1, x.shape), jnp.float32)
    nnx.update(tower, jax.tree.map(values, nnx.state(tower, nnx.Param)))
    expected = np.asarray(nnx.jit(lambda tower, *a: tower(*a))(tower, patches, grids))
    place(tower, sharding)
    rows = lambda x: jax.device_put(x, sharding.named((Axis.BATCH, *[None] * (x.ndim - 1))))
    pin = constrain(sharding)
    actual = nnx.jit(lambda tower, *a: tower(*a, constrain=pin))(tower, rows(patches), rows(grids))
    assert np.abs(np.asarray(actual) - expected).max() <= 2e-5 * np.abs(expected).max()
