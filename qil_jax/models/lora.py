"""Low-rank changes of linear maps (LoRA, arXiv 2106.09685): x @ (kernel + scale * a @ b) without the merged kernel.

The factors are parameters of a submodule `lora` of each changed map, stacked if its kernel is, so that they have paths,
logical axes and slices in a scan like all parameters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Float32

from qil_jax.models.paths import slashed


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


def add_lora(model: nnx.Module, *, rank: int, alpha: float, targets: Callable[[str], Any]) -> list[str]:
    """Add a change of low rank to linear maps of a (possibly abstract) model, in place.

    The factors are fp32 and abstract: the caller provides their values. They are split over a mesh as the kernel's
    input and output are.

    Args:
      model: model with maps of `models.layers.Linear`.
      rank: number of columns of a and of rows of b.
      alpha: numerator of the scale alpha / rank.
      targets: function of a map's slash-joined path whose result is true for the maps to be changed.

    Returns:
      The paths of the changed maps.
    """
    chosen = {path: module for path, module in linear_maps(model).items() if targets(path)}
    for module in chosen.values():
        *stack, width_in, width_out = module.kernel.shape
        *above, axis_in, axis_out = module.kernel.get_metadata()["axes"]
        factor = lambda *shape: jax.ShapeDtypeStruct((*stack, *shape), jnp.float32)  # noqa: B023
        a = nnx.Param(factor(width_in, rank), axes=(*above, axis_in, None))
        b = nnx.Param(factor(rank, width_out), axes=(*above, None, axis_out))
        module.lora = LowRank(a, b, alpha / rank)
    return list(chosen)


def linear_maps(model: nnx.Module) -> dict[str, nnx.Linear]:
    """The linear maps of a model by slash-joined path; a stack of maps is one."""
    return {slashed(path): module for path, module in nnx.iter_modules(model) if isinstance(module, nnx.Linear)}
