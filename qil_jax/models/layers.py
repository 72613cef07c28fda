"""The few layers that all three networks share: linear, convolution, norms; logical axes on all parameters."""

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Float32

from qil_jax.models.axes import Axis
from qil_jax.models.paths import slashed

Width = int | tuple[int, Axis | None]
Arrays = TypeVar("Arrays", bound=tuple[Any, ...])


class Linear(nnx.Linear):
    """x @ kernel + bias, rounded to x's dtype once, at the end."""

    def __call__(self, inputs: Float[Array, "... i"]) -> Float[Array, "... o"]:  # type: ignore[override]
        out = product(inputs, self.kernel[...])
        return (out if self.bias is None else out + self.bias[...]).astype(inputs.dtype)


def linear(features_in: Width, features_out: Width, *, bias: bool = True, rngs: nnx.Rngs) -> Linear:
    """An affine map whose kernel `[in, out]` carries logical axes; a width is a size or (size, axis)."""
    size_in, axis_in = features_in if isinstance(features_in, tuple) else (features_in, None)
    size_out, axis_out = features_out if isinstance(features_out, tuple) else (features_out, None)
    return Linear(
        size_in,
        size_out,
        use_bias=bias,
        kernel_metadata={"axes": (axis_in, axis_out)},
        bias_metadata={"axes": (axis_out,)},
        rngs=rngs,
    )


@jax.custom_vjp
def product(x: Float[Array, "... i"], kernel: Float[Array, "i o"]) -> Float32[Array, "... o"]:
    """x @ kernel, in fp32; only its gradient is special, see `_kernel_gradient_on_cpu`."""
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel), (x, kernel)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    gradient = gradient.astype(x.dtype)  # it comes from a result of that dtype: nothing is lost
    of_kernel = jax.lax.platform_dependent(x, gradient, cpu=_kernel_gradient_on_cpu, default=_kernel_gradient)
    return gradient @ kernel.T, of_kernel


def _kernel_gradient(x: Float[Array, "... i"], gradient: Float[Array, "... o"]) -> Float[Array, "i o"]:
    return jnp.einsum("...i,...o->io", x, gradient)


def _kernel_gradient_on_cpu(x: Float[Array, "... i"], gradient: Float[Array, "... o"]) -> Float[Array, "i o"]:
    """The same, written so that XLA for CPUs makes no slow program of it.

    Summed over several axes, its product takes a transposed copy of the first operand, and what precedes that operand
    is fused into the copy. So there is one axis of rows; the operands are made before the product; and the narrower
    one goes first, since it is what the product itself transposes. The second barrier holds that order.
    """
    rows = lambda y: y.reshape(-1, y.shape[-1])  # noqa: E731
    x, gradient = jax.lax.optimization_barrier((rows(x), rows(gradient)))
    if x.shape[-1] <= gradient.shape[-1]:
        return _kernel_gradient(x, gradient)
    return jax.lax.optimization_barrier(_kernel_gradient(gradient, x)).T


product.defvjp(_forward, _backward)


def embedding(count: int, width: int, *, axes: tuple[Axis | None, Axis | None], rngs: nnx.Rngs) -> nnx.Embed:
    """A table `[count, width]` whose rows come out in the dtype that it has when it is read.

    nnx.Embed by itself goes on giving the dtype that it was built with, whatever its table has been cast to.
    """
    return nnx.Embed(count, width, promote_dtype=_as_stored, embedding_metadata={"axes": axes}, rngs=rngs)


def _as_stored(arrays: Arrays, /, **_: Any) -> Arrays:
    return arrays


def pointwise(channels_in: int, channels_out: int, *, rngs: nnx.Rngs) -> Linear:
    """A 1x1 convolution, which on channels-last arrays is a linear map."""
    return linear((channels_in, Axis.CHANNELS_IN), (channels_out, Axis.CHANNELS_OUT), rngs=rngs)


Pads = tuple[tuple[int, int], tuple[int, int]]
"""Zeros above and below, left and right."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(
    x: Float[Array, "b y x i"], kernel: Float[Array, "h w i o"], stride: int, padding: Pads
) -> Float32[Array, "b y2 x2 o"]:
    """A convolution summed and given in fp32. Its gradient is that of one in x's dtype: jax has none of mixed ones."""
    return _convolve(x, kernel, stride, padding, jnp.float32)


def _convolve(x: Array, kernel: Array, stride: int, padding: Pads, dtype: Any = None) -> Array:
    form = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=form, preferred_element_type=dtype
    )


def _convolution_forward(x: Array, kernel: Array, stride: int, padding: Pads) -> tuple[Array, tuple[Array, Array]]:
    return convolution(x, kernel, stride, padding), (x, kernel)


def _convolution_backward(
    stride: int, padding: Pads, kept: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    _, pull = jax.vjp(lambda x, kernel: _convolve(x, kernel, stride, padding), *kept)
    return pull(gradient.astype(kept[0].dtype))


convolution.defvjp(_convolution_forward, _convolution_backward)


class Conv(nnx.Conv):
    """A convolution with a bias, rounded to x's dtype once, at the end."""

    def __call__(self, inputs: Float[Array, "b y x i"]) -> Float[Array, "b y2 x2 o"]:  # type: ignore[override]
        (stride, _), padding = self.strides, self.padding  # type: ignore[misc]
        return self.biased(convolution(inputs, self.kernel[...], stride, padding), inputs.dtype)  # type: ignore[arg-type]

    def biased(self, out: Float32[Array, "... o"], dtype: Any) -> Float[Array, "... o"]:
        """A result of `convolution` with the bias added, rounded."""
        assert self.bias is not None
        return (out + self.bias[...]).astype(dtype)


def conv3x3(
    channels_in: int, channels_out: int, *, stride: int = 1, padding: Pads = ((1, 1), (1, 1)), rngs: nnx.Rngs
) -> Conv:
    """A 3x3 convolution; kernel HWIO."""
    axes = (None, None, Axis.CHANNELS_IN, Axis.CHANNELS_OUT)
    return Conv(
        channels_in,
        channels_out,
        (3, 3),
        strides=(stride, stride),
        padding=padding,
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": (Axis.CHANNELS_OUT,)},
        rngs=rngs,
    )


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, the mean taken in fp32."""

    def __init__(self, width: int, *, eps: float = 1e-6):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((width,)), axes=(None,))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * self.scale[...].astype(x.dtype)


class ChannelNorm(nnx.Module):
    """x / max(|x|_2, 1e-12) * sqrt(C) * scale over channels: the VAE's norm (checkpoint.md 6), taken in fp32."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones((channels,)), axes=(None,))

    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y x c"]:
        wide = x.astype(jnp.float32)
        square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
        inverse = x.shape[-1] ** 0.5 / jnp.maximum(jnp.sqrt(square), 1e-12)
        return (wide * inverse).astype(x.dtype) * self.scale[...].astype(x.dtype)


def layer_norm(x: Float[Array, "... d"], eps: float = 1e-6) -> Float[Array, "... d"]:
    """LayerNorm without learned parameters, in fp32."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)).astype(x.dtype)


def parameter_shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by slash-joined path; works on abstract models too."""
    return {slashed(path): tuple(v.shape) for path, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}
