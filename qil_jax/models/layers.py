"""Layers shared by the networks: linear maps, convolutions, norms. Every parameter has logical axes as metadata."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Float32

from qil_jax.models.axes import Axis
from qil_jax.models.products import FEW_ROWS, InPlace, MatMul, Pads, convolution, in_pieces, matmul

Width = int | tuple[int, Axis | None]
Arrays = TypeVar("Arrays", bound=tuple[Any, ...])


class LowRank(nnx.Module):
    """The change scale * a @ b of a kernel [i, o] or of a stack of kernels.

    Attributes:
      a: factor of the input, [..., i, r].
      b: factor of the output, [..., r, o].
      scale: static factor of the product: alpha / r.
    """

    def __init__(self, a: nnx.Param[Any], b: nnx.Param[Any], scale: float):
        self.a, self.b, self.scale = a, b, scale

    def __call__(self, x: Float[Array, "... i"], product: Callable[[Array, Array], Array]) -> Float32[Array, "... o"]:
        """The change of the result, scale * ((x @ a) @ b) in fp32, by a matrix product that sums in fp32."""
        return self.scale * product(product(x, self.a[...]), self.b[...].astype(jnp.float32))


class Linear(nnx.Linear):
    """A linear map x @ kernel + bias, summed in fp32 and rounded to x's dtype once. `use_matmul` replaces `matmul`.

    Attributes:
      scale: fp32 factor of each output channel of a kernel that `models.quantised.quantise` stores in one byte per
        element; None: the kernel is not quantised.
      lora: change of the kernel by `models.lora.add_lora`, whose product is part of the sum; None: no change.
    """

    scale: nnx.Param[Any] | None = None
    lora: LowRank | None = None

    def __init__(self, *sizes: int, **options: Any):
        super().__init__(*sizes, **options)
        self.matmul: MatMul = matmul

    def __call__(self, inputs: Float[Array, "... i"]) -> Float[Array, "... o"]:  # type: ignore[override]
        """The map, applied to the last axis."""
        product = lambda x, kernel: self.matmul(x, kernel, self.precision)
        kernel = self.kernel[...]
        if self.scale is None:
            out = product(inputs, kernel)
        else:  # int8 and e4m3 are exact in bf16, and a factor of an output channel can follow the sum
            out = product(inputs, kernel.astype(inputs.dtype)) * self.scale[...]
        if self.lora is not None:
            out = out + self.lora(inputs, product)
        return rounded(out, self.bias, inputs.dtype)


def rounded(total: Float32[Array, "... o"], bias: Any, dtype: Any) -> Float[Array, "... o"]:
    """The sum of products and a bias [o], or None for no bias, rounded to `dtype` once."""
    return (total if bias is None else total + bias[...]).astype(dtype)


def linear(features_in: Width, features_out: Width, *, bias: bool = True, rngs: nnx.Rngs) -> Linear:
    """An affine map with kernel [in, out]; a width is a size, or a size and its logical axis."""
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


def gated(gate: Linear, up: Linear, down: Linear, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
    """The gated SiLU network down(silu(gate(x)) * up(x)); `InPlace` holds few hidden columns of many rows at once."""
    product, plain = gate.matmul, all(layer.scale is None and layer.lora is None for layer in (gate, up, down))
    if not (isinstance(product, InPlace) and plain and x.size // x.shape[-1] > FEW_ROWS):
        return down(jax.nn.silu(gate(x)) * up(x))
    flat = x.reshape(-1, x.shape[-1])

    def hidden(layer: Linear, first: Array | int, count: int) -> Array:
        bias = None if layer.bias is None else jax.lax.dynamic_slice_in_dim(layer.bias[...], first, count)
        return rounded(matmul(flat, product.part(layer.kernel[...], 1, first, count)), bias, x.dtype)

    def add(total: Array, first: Array | int, count: int) -> Array:
        columns = jax.nn.silu(hidden(gate, first, count)) * hidden(up, first, count)
        return total + matmul(columns, product.part(down.kernel[...], 0, first, count))

    total = in_pieces(gate.kernel.shape[-1], add, jnp.zeros((len(flat), down.kernel.shape[-1]), jnp.float32))
    return rounded(total, down.bias, x.dtype).reshape(*x.shape[:-1], -1)


def use_matmul(model: nnx.Module, function: MatMul) -> None:
    """Replace the matrix product of every linear map of a (possibly abstract) model by `function`, in place."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Linear):
            module.matmul = function


def embedding(count: int, width: int, *, axes: tuple[Axis | None, Axis | None], rngs: nnx.Rngs) -> nnx.Embed:
    """An embedding table [count, width] that returns rows in the table's current dtype.

    By default nnx.Embed casts rows to the dtype with which it was built, even if the table has been cast since.
    """
    return nnx.Embed(count, width, promote_dtype=_as_stored, embedding_metadata={"axes": axes}, rngs=rngs)


def _as_stored(arrays: Arrays, /, **_: Any) -> Arrays:
    return arrays


def pointwise(channels_in: int, channels_out: int, *, rngs: nnx.Rngs) -> Linear:
    """A 1x1 convolution: on channels-last arrays a linear map."""
    return linear((channels_in, Axis.CHANNELS_IN), (channels_out, Axis.CHANNELS_OUT), rngs=rngs)


class Conv(nnx.Conv):
    """A convolution with a bias, summed in fp32 and rounded to x's dtype once."""

    def __call__(self, inputs: Float[Array, "b y x i"]) -> Float[Array, "b y2 x2 o"]:  # type: ignore[override]
        """The convolution of channels-last arrays."""
        (stride, _), padding = self.strides, self.padding  # type: ignore[misc]
        out = convolution(inputs, self.kernel[...], stride, padding, self.precision)  # type: ignore[arg-type]
        return rounded(out, self.bias, inputs.dtype)


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
    """Root-mean-square norm, x / sqrt(mean(x^2) + eps) * scale over the last axis, the mean taken in fp32."""

    def __init__(self, width: int, *, eps: float = 1e-6):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((width,)), axes=(None,))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """The normalised array, in the dtype of `x`."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * self.scale[...].astype(x.dtype)


class ChannelNorm(nnx.Module):
    """Channel norm, x / max(|x|_2, 1e-12) * sqrt(C) * scale over channels, in fp32 (docs/specification.md, 1)."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones((channels,)), axes=(None,))

    def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y x c"]:
        """The normalised array, in the dtype of `x`."""
        wide = x.astype(jnp.float32)
        square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
        inverse = x.shape[-1] ** 0.5 / jnp.maximum(jnp.sqrt(square), 1e-12)
        return (wide * inverse).astype(x.dtype) * self.scale[...].astype(x.dtype)


def layer_norm(x: Float[Array, "... d"], eps: float = 1e-6) -> Float[Array, "... d"]:
    """LayerNorm without learned parameters, in fp32."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)).astype(x.dtype)
