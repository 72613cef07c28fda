"""Quantised linear maps: their arithmetic, which maps they are, and their axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qil_jax.mesh import INFERENCE_RULES, MeshShape, Sharding, describe, make_mesh, shardings
from qil_jax.models.axes import Axis
from qil_jax.models.lora import linear_maps
from qil_jax.models.quantised import Quantisation, quantise, quantised
from qil_jax.models.qwen2_5_vl import Qwen2_5VLConfig, TextEncoder
from qil_jax.models.vld_mmdit import MMDiTConfig, Modulation, VLDMMDiT

CONFIG = MMDiTConfig(
    num_layers=3,
    num_attention_heads=2,
    attention_head_dim=16,
    joint_attention_dim=24,
    in_channels=8,
    out_channels=2,
    axes_dims_rope=(4, 6, 6),
)
ENDS = {"backbone/image_in", "backbone/image_out", "backbone/text_in"}
ENDS |= {"modulation/out", "modulation/time_in", "modulation/time_out"}
HOWS = tuple(Quantisation)


def kernels(model: nnx.Module) -> dict[str, np.ndarray]:
    return {path: np.asarray(module.kernel[...]) for path, module in linear_maps(model).items()}


@pytest.mark.parametrize("how", HOWS)
def test_elements_are_as_close_as_their_type_allows(how):
    weights = np.random.default_rng(0).standard_normal((3, 64, 48)).astype(np.float32)
    weights[1, :, 5] = 0
    elements, scale = quantised(weights, how, axis=-2)
    assert elements.dtype == how.dtype and scale.shape == (3, 48) and (scale > 0).all()
    restored = elements.astype(np.float32) * scale[:, None]
    error = np.abs(restored - weights)
    step = scale[:, None] / 2 if how is Quantisation.INT8 else np.maximum(np.abs(weights) / 16, scale[:, None] / 1024)
    assert (error <= step * 1.0001).all() and error.max() > 0
    assert not restored[1, :, 5].any()
    largest = np.abs(elements.astype(np.float32)).max(axis=-2)
    assert largest[0].min() == largest.max() == how.largest, "each channel uses the whole range"


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.full
def test_a_quantised_map_is_its_dequantised_kernel(how, dtype):
    model = VLDMMDiT(CONFIG, rngs=nnx.Rngs(0)).backbone.blocks.image
    quantise(model, how)
    linear = nnx.merge(*(jax.tree.map(lambda x: x[1], part) for part in nnx.split(model.mlp_in)))
    linear.bias.set_value(jax.random.normal(jax.random.key(1), linear.bias.shape))
    x = jax.random.normal(jax.random.key(0), (5, CONFIG.width)).astype(dtype)
    kernel = np.asarray(linear.kernel[...]).astype(np.float64) * np.asarray(linear.scale[...], np.float64)
    expected = np.asarray(x, np.float64) @ kernel + np.asarray(linear.bias[...], np.float64)
    out = jax.jit(lambda x: linear(x))(x)
    assert out.dtype == dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-8
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.full
def test_the_stacked_modulation_is_its_dequantised_kernel(how):
    plain = Modulation(CONFIG, rngs=nnx.Rngs(0))
    model = nnx.clone(plain)
    quantise(model, how)
    for name in ("image", "text"):
        stack = getattr(model, name)
        kernel = stack.kernel[...].astype(jnp.float32) * stack.scale[...][:, None]
        getattr(plain, name).kernel.set_value(kernel)
    sigma = jnp.array([0.3, 0.8])
    ours, expected = model(sigma), plain(sigma)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.full
def test_all_maps_in_blocks_are_quantised_and_the_others_named(how):
    model = VLDMMDiT(CONFIG, rngs=nnx.Rngs(0))
    before = kernels(model)
    assert set(quantise(model, how)) == ENDS
    after = kernels(model)
    quantised_maps = {path for path, kernel in after.items() if kernel.dtype == how.dtype}
    assert quantised_maps == before.keys() - ENDS and len(quantised_maps) == 14
    assert all(np.array_equal(before[path], after[path]) for path in ENDS)
    count = sum(np.prod(before[path].shape) for path in quantised_maps)
    d = CONFIG.width
    assert count == CONFIG.num_layers * 2 * (4 * d * d + 8 * d * d + 6 * d * d)
    with pytest.raises(ValueError, match="quantised already"):
        quantise(model, how)


@pytest.mark.full
def test_an_abstract_model_has_the_same_parameters():
    model = VLDMMDiT(CONFIG, rngs=nnx.Rngs(0))
    shapes = nnx.eval_shape(lambda: VLDMMDiT(CONFIG, rngs=nnx.Rngs(0)))
    assert quantise(model, Quantisation.FP8) == quantise(shapes, Quantisation.FP8)
    found = [
        {path: (x.shape, x.dtype, x.get_metadata()["axes"]) for path, x in nnx.to_flat_state(nnx.state(m, nnx.Param))}
        for m in (model, shapes)
    ]
    assert found[0] == found[1]
    scale = shapes.modulation.image.scale
    assert scale.get_metadata()["axes"] == (Axis.BLOCK, Axis.MODULATION) and scale.dtype == jnp.float32


def test_scales_are_sharded_as_the_outputs_of_their_kernels():
    model = nnx.eval_shape(lambda: VLDMMDiT(CONFIG, rngs=nnx.Rngs(0)))
    quantise(model, Quantisation.INT8)
    sharding = Sharding(make_mesh(MeshShape.parse("fsdp=2,tensor=2"), jax.devices()[:4]), INFERENCE_RULES)
    by_path = shardings(model, sharding)
    scales = {path for path in by_path if path.endswith("/scale") and "norm" not in path}
    assert len(scales) == 14
    for path in scales:
        kernel = by_path[path.replace("/scale", "/kernel")].spec
        assert by_path[path].spec == type(kernel)(kernel[0], kernel[2])
    assert "modulation/image/scale" in describe(model, sharding)


@pytest.mark.full
def test_the_text_encoder_keeps_only_its_embedding_and_norms():
    config = Qwen2_5VLConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        vocab_size=32,
    )
    model = TextEncoder(config, rngs=nnx.Rngs(0))
    assert quantise(model, Quantisation.INT8) == []
    assert {kernel.dtype for kernel in kernels(model).values()} == {np.dtype(np.int8)}
    assert len(kernels(model)) == 7
    states = model(jnp.arange(6)[None], jnp.ones((1, 6), bool))
    assert states.dtype == jnp.float32 and bool(jnp.isfinite(states).all())
