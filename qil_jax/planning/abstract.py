"""Models of the released size as shapes with shardings: all that a compiler needs, and no bytes."""

from functools import cache
from typing import Any, Literal, overload

import jax
from flax import nnx

from qil_jax.mesh import Sharding, shardings
from qil_jax.models.paths import slashed
from qil_jax.models.qwen2_5_vl import Qwen2_5VLConfig, TextEncoder
from qil_jax.models.vld_mmdit import VLDMMDiT
from qil_jax.weights import Architecture, Component

STATISTICS = {"latents_mean": (0.0,) * 16, "latents_std": (1.0,) * 16}
"""Statistics of the latents, which the VAE's config needs and which do not matter here."""


@overload
def fresh_network(component: Literal[Component.TRANSFORMER]) -> VLDMMDiT: ...
@overload
def fresh_network(component: Component) -> nnx.Module: ...
def fresh_network(component: Component) -> nnx.Module:
    """`network` as an object of its own; the configs are the defaults of our classes, and what makes them layered."""
    match component:
        case Component.TRANSFORMER:
            return Architecture(component, {}).layered.abstract()
        case Component.VAE:
            return Architecture(component, STATISTICS).layered.abstract()
        case Component.TEXT_ENCODER:
            return nnx.eval_shape(lambda: TextEncoder(Qwen2_5VLConfig(), rngs=nnx.Rngs(0)))


@cache
def network(component: Component) -> nnx.Module:
    """A component of the released size, without parameters. It must not be changed."""
    return fresh_network(component)


def cast(model: nnx.Module, dtype: Any) -> None:
    """Give all parameters of an abstract model a dtype, in place."""
    state = nnx.state(model, nnx.Param)
    for _, parameter in nnx.to_flat_state(state):
        parameter.set_value(jax.ShapeDtypeStruct(parameter.shape, dtype))
    nnx.update(model, state)


def place_shapes(model: nnx.Module, sharding: Sharding) -> None:
    """Give the parameters of an abstract model their shardings, in place.

    Raises:
      MeshError: if the rules do not fit the model, see `shardings`.
    """
    shapes, state = placed_shapes(model, sharding), nnx.state(model, nnx.Param)
    for path, parameter in nnx.to_flat_state(state):
        parameter.set_value(shapes[slashed(path)])
    nnx.update(model, state)


def placed_shapes(model: nnx.Module, sharding: Sharding, dtype: Any = None) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters of a model by path: shapes and shardings without values.

    Args:
      model: model, which may be abstract.
      sharding: mesh and rules; its devices need not exist.
      dtype: dtype of all parameters; None: their own.

    Raises:
      MeshError: if the rules do not fit the model, see `shardings`.
    """
    by_path = shardings(model, sharding)
    found = {slashed(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=by_path[path])
        for path, leaf in found.items()
    }


def device_bytes(shapes: Any) -> int:
    """Bytes of a tree of placed shapes on one device."""
    leaves = jax.tree.leaves(shapes)
    return sum(_product(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
