"""Derivatives of linear maps and convolutions: both modes, both ways of the gradient, and the precision asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads
from sizes import TRANSFORMER, VAE

from qil_jax.models.layers import conv3x3, linear, use_matmul
from qil_jax.models.products import convolution, matmul, matmul_by_rows
from qil_jax.models.rgba_vae import RGBAVAE, VAEConfig
from qil_jax.models.vld_mmdit import MMDiTConfig, TokenLayout, VLDMMDiT
from qil_jax.training.parameters import training_network


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def velocity_of(model: VLDMMDiT):
    """A function of the model's parameters and image tokens to velocities."""
    graph, state = nnx.split(model)
    grid, words = (2, 3), 4
    layout = TokenLayout.of(grid, (0, 1, -1), np.ones((1, words), np.int32))
    text = normal(1, words, model.config.joint_attention_dim, seed=1)
    numbers = {"sigma": jnp.array([0.4]), "target_kind": jnp.array([0])}
    return state, lambda state, image: nnx.merge(graph, state)(image, text, layout, **numbers)


@pytest.fixture
def transformer() -> VLDMMDiT:
    return VLDMMDiT(MMDiTConfig(**TRANSFORMER), rngs=nnx.Rngs(0))


@pytest.mark.full
def test_derivatives_of_the_products():
    close = {"atol": 1e-2, "rtol": 1e-2}
    check_grads(jax.jit(matmul), (normal(2, 3, 5), normal(5, 4)), order=2, modes=("fwd", "rev"), **close)
    check_grads(jax.jit(matmul_by_rows), (normal(2, 3, 5), normal(5, 4)), order=1, modes=("rev",), **close)
    convolve = jax.jit(lambda x, kernel: convolution(x, kernel, 2, ((0, 1), (0, 1))))
    check_grads(convolve, (normal(1, 6, 4, 3), normal(3, 3, 3, 2)), order=2, modes=("fwd", "rev"), **close)


@pytest.mark.parametrize(("width_in", "width_out"), [(5, 9), (9, 5)])
@pytest.mark.full
def test_gradients_of_both_matmuls_agree(width_in, width_out):
    x, kernel, weights = normal(2, 3, width_in), normal(width_in, width_out), normal(2, 3, width_out, seed=2)
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 0.02)):
        given = x.astype(dtype), kernel.astype(dtype)
        plain, by_rows = (
            jax.grad(lambda x, k, f=f: jnp.sum(f(x, k) * weights), (0, 1))(*given) for f in (matmul, matmul_by_rows)
        )
        for a, b in zip(plain, by_rows, strict=True):
            assert a.dtype == b.dtype == dtype
            np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance, rtol=tolerance)


@pytest.mark.full
def test_both_gradients_of_the_transformer_agree(transformer):
    image, weights = normal(1, 18, TRANSFORMER["in_channels"]), normal(1, 18, 24, seed=3)

    def gradient(model: VLDMMDiT):
        state, run = velocity_of(model)
        return jax.jit(jax.grad(lambda state: jnp.sum(run(state, image) * weights)))(state)

    plain = gradient(transformer)
    use_matmul(transformer, matmul_by_rows)
    by_rows = gradient(transformer)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(by_rows), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(a).max() + 1))


@pytest.mark.full
def test_forward_mode_of_the_transformer(transformer):
    """The directional derivative is that of finite differences, and that of reverse mode."""
    state, run = velocity_of(transformer)
    image, direction = normal(1, 18, TRANSFORMER["in_channels"]), normal(1, 18, TRANSFORMER["in_channels"], seed=5)
    _, tangent = jax.jvp(lambda x: run(state, x), (image,), (direction,))
    step = 1e-2
    difference = (run(state, image + step * direction) - run(state, image - step * direction)) / (2 * step)
    np.testing.assert_allclose(tangent, difference, atol=5e-3 * float(jnp.abs(difference).max()))
    weights = normal(*tangent.shape, seed=6)
    _, pull = jax.vjp(lambda x: run(state, x), image)
    np.testing.assert_allclose(jnp.sum(tangent * weights), jnp.sum(pull(weights)[0] * direction), rtol=1e-3)


@pytest.mark.full
def test_forward_mode_of_the_vae():
    vae = RGBAVAE(VAEConfig.from_json(VAE), rngs=nnx.Rngs(0))
    x, direction = normal(1, 16, 8, 4), normal(1, 16, 8, 4, seed=1)
    through = lambda x: vae.decoder(vae.encode(x).mean)
    _, tangent = jax.jit(lambda x, direction: jax.jvp(through, (x,), (direction,)))(x, direction)
    assert np.isfinite(tangent).all() and float(jnp.abs(tangent).max()) > 0


@pytest.mark.parametrize("function", [matmul, matmul_by_rows])
def test_a_matmul_and_its_gradients_have_the_precision_that_is_asked_for(function):
    layer = linear(5, 4, rngs=nnx.Rngs(0))
    layer.precision, layer.matmul = jax.lax.Precision.HIGHEST, function
    graph, state = nnx.split(layer)
    program = jax.make_jaxpr(jax.grad(lambda s, x: nnx.merge(graph, s)(x).sum(), (0, 1)))(state, normal(2, 3, 5))
    assert precisions(str(program)) == (3, 3)


def test_a_convolution_and_its_gradients_have_the_precision_that_is_asked_for():
    layer = conv3x3(3, 2, rngs=nnx.Rngs(0))
    layer.precision = jax.lax.Precision.HIGHEST
    graph, state = nnx.split(layer)
    program = jax.make_jaxpr(jax.grad(lambda s, x: nnx.merge(graph, s)(x).sum(), (0, 1)))(state, normal(1, 4, 4, 3))
    assert precisions(str(program)) == (3, 3)


def precisions(program: str) -> tuple[int, int]:
    """How many products a program has, and how many of them are of the highest precision."""
    products = [part for part in program.split("= ") if part.startswith(("dot_general[", "conv_general_dilated["))]
    return len(products), sum("Precision.HIGHEST" in part or "HIGHEST" in part for part in products)


@pytest.mark.full
def test_training_on_cpus_chooses_the_gradient_by_rows(transformer):
    network = training_network(transformer)
    state = {path: leaf[...] for path, leaf in zip(network.paths, jax.tree.leaves(nnx.state(transformer)), strict=True)}
    assert network(state).backbone.image_in.matmul is matmul_by_rows
    assert network(state).backbone.blocks.image.q.matmul is matmul_by_rows
    assert VLDMMDiT(transformer.config, rngs=nnx.Rngs(0)).backbone.image_in.matmul is matmul
