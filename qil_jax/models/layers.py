"""The few layers that all three networks share: linear, convolution, norms; logical axes on all parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from qil_jax.models.axes import Axis

Width = int | tuple[int, Axis | None]


def linear(features_in: Width, features_out: Width, *, bias: bool = True, rngs: nnx.Rngs) -> nnx.Linear:
    """An affine map whose kernel `[in, out]` carries logical axes; a width is a size or (size, axis)."""
    size_in, axis_in = features_in if isinstance(features_in, tuple) else (features_in, None)
    size_out, axis_out = features_out if isinstance(features_out, tuple) else (features_out, None)
    return nnx.Linear(
        size_in,
        size_out,
        use_bias=bias,
        dot_general=_affine,
        kernel_metadata={"axes": (axis_in, axis_out)},
        bias_metadata={"axes": (axis_out,)},
        rngs=rngs,
    )


@jax.custom_vjp
def product(x: Float[Array, "... i"], kernel: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """x @ kernel; only its gradient is special: a CPU makes the operands of the kernel's gradient first.

    Left to itself, XLA for CPUs fuses what precedes that product into a transposed copy, which costs a tenth of a step.
    """
    return x @ kernel


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    of_kernel = lambda x, gradient: jnp.einsum("...i,...o->io", x, gradient)  # noqa: E731
    on_cpu = lambda x, gradient: of_kernel(*jax.lax.optimization_barrier((x, gradient)))  # noqa: E731
    return gradient @ kernel.T, jax.lax.platform_dependent(x, gradient, cpu=on_cpu, default=of_kernel)


product.defvjp(_forward, _backward)


def _affine(x: Array, kernel: Array, dimensions: Any, **_: Any) -> Array:
    """`product` in the place of lax.dot_general, for nnx.Linear."""
    return product(x, kernel)


def pointwise(channels_in: int, channels_out: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A 1x1 convolution, which on channels-last arrays is a linear map."""
    return linear((channels_in, Axis.CHANNELS_IN), (channels_out, Axis.CHANNELS_OUT), rngs=rngs)


def conv3x3(channels_in: int, channels_out: int, *, rngs: nnx.Rngs) -> nnx.Conv:
    """A 3x3 convolution with stride 1 and one zero of padding on each side; kernel HWIO."""
    axes = (None, None, Axis.CHANNELS_IN, Axis.CHANNELS_OUT)
    return nnx.Conv(
        channels_in,
        channels_out,
        (3, 3),
        padding=((1, 1), (1, 1)),
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
    return {"/".join(map(str, path)): tuple(v.shape) for path, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}
