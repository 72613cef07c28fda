"""Low-rank changes of linear maps (LoRA, arXiv 2106.09685): x @ (kernel + scale * a @ b) without the merged kernel.

The factors are parameters of a submodule `lora` of each changed map, stacked if its kernel is, so that they have paths,
logical axes and slices in a scan like all parameters. qwix's LoraProvider (0.1.8) cannot do this: it puts scalar random
counters into every map, which a scan over blocks cannot slice, and changes them in traces of the scan and the products.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from qil_jax.models.layers import Linear, LowRank
from qil_jax.models.paths import slashed


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
        a = jax.ShapeDtypeStruct((*stack, width_in, rank), jnp.float32)
        b = jax.ShapeDtypeStruct((*stack, rank, width_out), jnp.float32)
        module.lora = LowRank(
            nnx.Param(a, axes=(*above, axis_in, None)), nnx.Param(b, axes=(*above, None, axis_out)), alpha / rank
        )
    return list(chosen)


def linear_maps(model: nnx.Module) -> dict[str, Linear]:
    """The linear maps of a model by slash-joined path; a stack of maps is one."""
    return {slashed(path): module for path, module in nnx.iter_modules(model) if isinstance(module, Linear)}
