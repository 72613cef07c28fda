"""Products of activations with kernels: matrix products and convolutions accumulated in fp32 for all input dtypes.

Both are bilinear, f(x, kernel), and so are their derivatives: f(dx, kernel) + f(x, dkernel). jax derives those of a
product whose result is wider than its operands with the wide dtype on one side, which is slow for matrices and not
supported for convolutions. Here they are products in the operands' own dtype, in both modes of differentiation.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.lax import PrecisionLike
from jaxtyping import Float, Float32, Int

MatMul = Callable[[Array, Array, PrecisionLike], Any]
"""`matmul`, `matmul_by_rows` or an `InPlace`."""
FEW_ROWS = 16
"""Largest number of rows of activations that `InPlace` multiplies as a sum over the kernel's rows."""
ROWS_AT_ONCE = 8
"""Rows of a kernel that this sum reads side by side: fewer or more are slower."""
COLUMNS_AT_ONCE = 256
"""Columns of a kernel that `InPlace` copies at once where there are more rows of activations."""
Add = Callable[[Any, Any, int], Any]
"""From a total, the first column and their number to the total with these columns."""
Pads = tuple[tuple[int, int], tuple[int, int]]
"""Numbers of zeros added (above, below) and (left, right)."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def matmul(
    x: Float[Array, "... i"], kernel: Float[Array, "i o"], precision: PrecisionLike = None
) -> Float32[Array, "... o"]:
    """The product x @ kernel in fp32."""
    return jnp.matmul(x, kernel, precision=precision, preferred_element_type=jnp.float32)


@functools.partial(matmul.defjvp, symbolic_zeros=True)
def _matmul_jvp(precision: PrecisionLike, primals: Any, tangents: Any) -> tuple[Array, Array]:
    tangent = _tangent(functools.partial(jnp.matmul, precision=precision), primals, tangents)
    return matmul(*primals, precision), tangent


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def convolution(
    x: Float[Array, "b y x i"],
    kernel: Float[Array, "h w i o"],
    stride: int,
    padding: Pads,
    precision: PrecisionLike = None,
) -> Float32[Array, "b y2 x2 o"]:
    """The two-dimensional convolution of x with kernel in fp32."""
    return _convolve(x, kernel, stride, padding, precision, jnp.float32)


@functools.partial(convolution.defjvp, symbolic_zeros=True)
def _convolution_jvp(
    stride: int, padding: Pads, precision: PrecisionLike, primals: Any, tangents: Any
) -> tuple[Array, Array]:
    convolve = lambda x, kernel: _convolve(x, kernel, stride, padding, precision)
    return convolution(*primals, stride, padding, precision), _tangent(convolve, primals, tangents)


def _convolve(
    x: Array, kernel: Array, stride: int, padding: Pads, precision: PrecisionLike, dtype: Any = None
) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
        preferred_element_type=dtype,
    )


def _tangent(product: Callable[[Array, Array], Array], primals: Any, tangents: Any) -> Array:
    """product(dx, kernel) + product(x, dkernel), without the terms that are known to be zero."""
    (x, kernel), (dx, dkernel) = primals, tangents
    terms = [] if isinstance(dx, SymbolicZero) else [product(dx, kernel)]
    terms += [] if isinstance(dkernel, SymbolicZero) else [product(x, dkernel)]
    return sum(term.astype(jnp.float32) for term in terms)  # type: ignore[return-value]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul_by_rows(
    x: Float[Array, "... i"], kernel: Float[Array, "i o"], precision: PrecisionLike = None
) -> Float32[Array, "... o"]:
    """`matmul` with a kernel gradient that XLA compiles to a fast program on CPUs; no forward-mode differentiation.

    Summed over several axes, the product of that gradient takes a transposed copy of its first operand, and what
    precedes the operand is fused into the copy. Therefore the rows are merged into one axis, the operands are computed
    before the product, and the narrower one comes first, since the product transposes its first operand.
    """
    return matmul(x, kernel, precision)


def _by_rows_forward(x: Array, kernel: Array, precision: PrecisionLike) -> tuple[Array, tuple[Array, Array]]:
    return matmul(x, kernel, precision), (x, kernel)


def _by_rows_backward(precision: PrecisionLike, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    gradient = gradient.astype(x.dtype)  # the gradient comes from a result of that dtype, so the cast is exact
    for_x = jnp.matmul(gradient, kernel.T, precision=precision)
    x, gradient = jax.lax.optimization_barrier((x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])))
    outer = lambda a, b: jnp.einsum("ri,ro->io", a, b, precision=precision)
    if x.shape[-1] <= gradient.shape[-1]:
        return for_x, outer(x, gradient)
    # The barrier prevents the compiler from swapping the operands back.
    return for_x, jax.lax.optimization_barrier(outer(gradient, x)).T


matmul_by_rows.defvjp(_by_rows_forward, _by_rows_backward)


@dataclasses.dataclass(frozen=True)
class InPlace:
    """The product x @ kernel in fp32, or with one kernel of a stack, for CPUs.

    XLA's products take a copy of a kernel in a stack, and Eigen's repack it for several rows, which for few of them
    costs more than to multiply. Then a sum over the kernel's rows reads them once, where they lie, as fast as memory
    allows. For many rows the kernel is copied some columns at a time.

    Attributes:
      index: number of the kernel in its stack; without effect where there is none.
    """

    index: Int[Array, ""] | int = 0

    def __call__(
        self, x: Float[Array, "... i"], kernel: Float[Array, "*k i o"], precision: PrecisionLike = None
    ) -> Float32[Array, "... o"]:
        """The product, whatever the precision."""
        del precision  # products are exact to fp32
        size, wide = kernel.shape[-2:]
        flat = x.reshape(-1, size)
        product = self._sum_of_rows if len(flat) <= FEW_ROWS else self._by_columns
        return product(flat, kernel).reshape(*x.shape[:-1], wide)

    def part(
        self, kernel: Float[Array, "*k i o"], axis: int, first: Int[Array, ""] | int, count: int
    ) -> Float[Array, "i2 o2"]:
        """Rows (axis 0) or columns (axis 1) of the kernel, from the first on so many."""
        stack = kernel.reshape(-1, *kernel.shape[-2:])
        one = jax.lax.dynamic_index_in_dim(stack, self.index if len(stack) > 1 else 0, keepdims=False)
        return jax.lax.dynamic_slice_in_dim(one, first, count, axis)

    def _sum_of_rows(self, flat: Array, kernel: Array) -> Array:
        """The product x [r, i] @ kernel [i, o] as a sum over i."""
        (size, wide), flat = kernel.shape[-2:], flat.astype(jnp.float32)
        count = max(n for n in range(1, ROWS_AT_ONCE + 1) if size % n == 0)

        def add(number: Array, total: Array) -> Array:
            columns = jax.lax.dynamic_slice_in_dim(flat, number * count, count, axis=1)
            for i in range(count):
                row = self.part(kernel, 0, number * count + i, 1)
                total = total + columns[:, i, None] * row.astype(jnp.float32)
            return total

        return jax.lax.fori_loop(0, size // count, add, jnp.zeros((len(flat), wide), jnp.float32))

    def _by_columns(self, flat: Array, kernel: Array) -> Array:
        """The product x [r, i] @ kernel [i, o], some columns of the result after others."""

        def fill(total: Array, first: Array | int, count: int) -> Array:
            columns = matmul(flat, self.part(kernel, 1, first, count))
            return jax.lax.dynamic_update_slice(total, columns, (0, first))

        return in_pieces(kernel.shape[-1], fill, jnp.zeros((len(flat), kernel.shape[-1]), jnp.float32))


def in_pieces(size: int, add: Add, total: Float32[Array, "r o"]) -> Float32[Array, "r o"]:
    """Fold `add(total, first, count)` over pieces of COLUMNS_AT_ONCE of `size` columns, and over what remains."""
    whole, rest = divmod(size, COLUMNS_AT_ONCE)
    piece = lambda number, total: add(total, number * COLUMNS_AT_ONCE, COLUMNS_AT_ONCE)
    total = jax.lax.fori_loop(0, whole, piece, total) if whole else total
    return add(total, whole * COLUMNS_AT_ONCE, rest) if rest else total
