"""Low-rank changes of linear maps give what merged kernels give, in single maps, stacks and the whole transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import error

from qil_jax.models.axes import Axis
from qil_jax.models.layers import linear, use_matmul
from qil_jax.models.lora import add_lora, linear_maps
from qil_jax.models.paths import slashed
from qil_jax.models.products import matmul_by_rows
from qil_jax.models.stack import Scan
from qil_jax.models.vld_mmdit import MMDiTConfig, TokenLayout, VLDMMDiT

RANK, ALPHA = 3, 4.5
CONFIG = MMDiTConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    joint_attention_dim=12,
    in_channels=8,
    out_channels=2,
    axes_dims_rope=(4, 6, 6),
)


def fill(model: nnx.Module, scale: float = 0.3) -> dict[str, np.ndarray]:
    """Give every factor random values; the factors by path."""
    state, factors = nnx.state(model, nnx.Param), {}
    rng = np.random.default_rng(0)
    for path, leaf in nnx.to_flat_state(state):
        if "lora" in path:
            value = (scale * rng.standard_normal(leaf.shape)).astype(np.float32)
            factors[slashed(path)] = value
            leaf.set_value(jnp.asarray(value))
    nnx.update(model, state)
    return factors


def merge(model: nnx.Module, factors: dict[str, np.ndarray]) -> None:
    """Add the changes to the kernels of a model without them."""
    for path, module in linear_maps(model).items():
        a, b = (factors.get(f"{path}/lora/{factor}") for factor in "ab")
        if a is not None and b is not None:
            module.kernel.set_value(module.kernel[...] + ALPHA / RANK * np.matmul(a, b))


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.full
def test_the_transformer_with_changes_is_that_of_the_merged_kernels(by_rows, unroll):
    """Every linear map is changed, stacked or not."""
    plain, changed = (VLDMMDiT(CONFIG, rngs=nnx.Rngs(0)) for _ in range(2))
    paths = add_lora(changed, rank=RANK, alpha=ALPHA, targets=lambda path: True)
    assert len(paths) == 20 and {"modulation/text", "modulation/out", "backbone/blocks/text/mlp_in"} <= {*paths}
    factors = fill(changed)
    assert len(factors) == 40 and factors["backbone/blocks/image/mlp_out/lora/a"].shape == (2, 128, RANK)
    if by_rows:
        use_matmul(changed, matmul_by_rows)
    rng = np.random.default_rng(1)
    image, text = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 8, 8), (2, 5, 12)))
    layout = TokenLayout.of((2, 2), (0, -1), np.ones((2, 5), np.int32))

    def velocity(model: VLDMMDiT) -> jax.Array:
        return model(image, text, layout, sigma=jnp.asarray([0.2, 0.7]), scan=Scan(unroll=unroll))

    before = velocity(plain)
    merge(plain, factors)
    wanted = velocity(plain)
    assert error(before, wanted) > 0.1
    assert error(velocity(changed), wanted) <= 1e-5


def test_targets_alone_are_changed_and_have_the_kernels_axes():
    model = nnx.eval_shape(lambda: VLDMMDiT(CONFIG, rngs=nnx.Rngs(0)))
    before = {slashed(path) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    wanted = ["backbone/blocks/image/out", "modulation/time_in"]
    assert add_lora(model, rank=RANK, alpha=ALPHA, targets=wanted.__contains__) == wanted
    after = {slashed(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert {*after} - before == {f"{path}/lora/{factor}" for path in wanted for factor in "ab"}
    axes = {path: leaf.get_metadata()["axes"] for path, leaf in after.items() if "lora" in path}
    assert axes == {
        "backbone/blocks/image/out/lora/a": (Axis.BLOCK, Axis.HEADS, None),
        "backbone/blocks/image/out/lora/b": (Axis.BLOCK, None, Axis.EMBED),
        "modulation/time_in/lora/a": (None, None),
        "modulation/time_in/lora/b": (None, Axis.EMBED),
    }
    assert add_lora(model, rank=RANK, alpha=ALPHA, targets=lambda path: False) == []


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_sum_is_rounded_once(dtype):
    model = linear(64, 48, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(2)
    model.bias.set_value(jnp.asarray(rng.standard_normal(48), jnp.float32))
    add_lora(nnx.List([model]), rank=RANK, alpha=ALPHA, targets=lambda path: True)
    fill(model, 0.5)
    state = jax.tree.map(lambda x: x.astype(dtype), nnx.state(model, nnx.Param))
    nnx.update(model, state)
    x = jnp.asarray(rng.standard_normal((40, 64)), dtype)
    exact = {slashed(path): np.asarray(leaf[...], np.float64) for path, leaf in nnx.to_flat_state(state)}
    low = np.asarray(x, np.float64) @ exact["lora/a"] @ exact["lora/b"]
    wanted = np.asarray(x, np.float64) @ exact["kernel"] + ALPHA / RANK * low + exact["bias"]
    found = model(x)
    assert found.dtype == dtype
    half = np.abs(wanted) * float(jnp.finfo(dtype).eps) / 2
    slack = 2e-6 * np.abs(wanted).max()  # of sums in fp32
    assert np.all(np.abs(np.asarray(found, np.float64) - wanted) <= half + slack)
