"""Weight-only quantisation of linear maps: y = (x @ kernel) * scale + bias with one byte per element of the kernel.

Quantised are the stacks of equal maps: those of all blocks, and the two stacks of the modulation. The few maps at both
ends of a network hold less than a hundredth of its parameters and stay as they are. A scale is a parameter of its map
with the axes of the kernel's output, so that it is sharded, sliced by a scan and loaded like all parameters.

qwix (0.1.8) is not used: its provider does not find kernels inside a scan over blocks, which then stay as they were
without a word, and its array type needs a call of its own in each map, whose arithmetic is that of `Linear`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Float32, Shaped

from qil_jax.choices import Quantisation
from qil_jax.models.axes import Axis
from qil_jax.models.lora import linear_maps


def quantised(
    weights: Float[np.ndarray, "..."], how: Quantisation, *, axis: int
) -> tuple[Shaped[np.ndarray, "..."], Float32[np.ndarray, "..."]]:
    """Elements q and scales s with q * s close to the weights; s is the largest weight of a channel over `how.largest`.

    Args:
      weights: finite weights.
      how: type of the elements.
      axis: axis of the inputs, which a channel spans; the scales lack it.
    """
    wide = weights.astype(np.float32)
    scale = np.abs(wide).max(axis) / np.float32(how.largest)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)  # a channel of zeros has a scale above zero, too
    wide /= np.expand_dims(scale, axis)
    np.clip(wide, -how.largest, how.largest, out=wide)
    if how is Quantisation.INT8:
        np.rint(wide, out=wide)
    return wide.astype(how.dtype), scale


def quantise(model: nnx.Module, how: Quantisation) -> list[str]:
    """Quantise all stacked linear maps of a (possibly abstract) model, in place.

    Args:
      model: model with maps of `models.layers.Linear`.
      how: type of the kernels' elements.

    Returns:
      The paths of the linear maps that stay as they are.

    Raises:
      ValueError: if a map is quantised already.
    """
    kept = []
    for path, module in linear_maps(model).items():
        if not jnp.issubdtype(module.kernel.dtype, jnp.floating) or module.scale is not None:
            raise ValueError(f"{path} is quantised already")
        axes = module.kernel.get_metadata()["axes"]
        if axes[0] is not Axis.BLOCK:
            kept.append(path)
            continue
        kernel, scale = _quantised_kernel(module.kernel.get_value(), how)
        module.kernel.set_value(kernel)
        module.scale = nnx.Param(scale, axes=(*axes[:-2], axes[-1]))
    return kept


def _quantised_kernel(kernel: Any, how: Quantisation) -> tuple[Any, Any]:
    """The elements and scales of a kernel [k, i, o], or their shapes if it is abstract."""
    if isinstance(kernel, jax.ShapeDtypeStruct):
        scale = jax.ShapeDtypeStruct((*kernel.shape[:-2], kernel.shape[-1]), jnp.float32)
        return jax.ShapeDtypeStruct(kernel.shape, how.dtype), scale
    elements, scale = quantised(np.asarray(kernel), how, axis=-2)
    return jnp.asarray(elements), jnp.asarray(scale)
