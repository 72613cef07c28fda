"""Muon (arXiv 2502.16982) by optax for the kernels of blocks: momentum of which every matrix is orthogonalised."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

KERNELS = frozenset(
    f"backbone/blocks/{stream}/{part}/kernel"
    for stream in ("image", "text")
    for part in ("q", "k", "v", "out", "mlp_in", "mlp_out")
)
"""Paths of the parameters that Muon changes, [blocks, in, out]: matrices that map a stream's features to features.

Norms and biases are no matrices; the kernels of modulation map one vector, those of input and output few features.
"""
RMS = 0.2
"""Root mean square of an update before the learning rate: that of AdamW's, so that both take similar rates."""
MATRICES = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)

Layout = Mapping[str, Any]
"""The NamedSharding of each parameter by path."""
Kernels = dict[str, Any]
"""Stacked kernels by path, [blocks, in, out]; other parameters are optax's MaskedNode."""


def scale_by_muon(layout: Layout | None = None) -> optax.GradientTransformation:
    """Orthogonalise the momentum of stacked kernels block by block, and scale it to the root mean square `RMS`.

    Args:
      layout: shardings of the parameters. For the time of the update the blocks of each kernel are divided among all
        devices of their mesh, so that a matrix is whole on one device: in parts, every iteration would gather it on
        all of them (docs/training.md). None: nothing is divided.
    """
    each = lambda kernels: jax.tree.map(lambda _: MATRICES, kernels)
    inner = optax.contrib.scale_by_muon(weight_dimension_numbers=each)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        given = updates
        if layout is not None:
            updates, state = _by_block(updates, layout), state._replace(mu=_by_block(state.mu, layout))
        updates, state = inner.update(updates, state, params)
        updates = jax.tree.map(lambda x: x * (RMS * max(x.shape[-2:]) ** 0.5), updates)
        if layout is not None:
            updates = _by_parameter(updates, layout, given)
            state = state._replace(mu=_by_parameter(state.mu, layout, given))
        return updates, state

    return optax.GradientTransformation(inner.init, update)


def _by_block(kernels: Kernels, layout: Layout) -> Kernels:
    """Kernels with zero blocks up to a multiple of the devices' number, divided among them."""

    def divided(path: tuple[Any, ...], x: Array) -> Array:
        where = layout[path[0].key]
        x = jnp.pad(x, ((0, -len(x) % where.mesh.size), (0, 0), (0, 0)))
        for stage in _stages(where):
            x = jax.lax.with_sharding_constraint(x, stage)
        return x

    return jax.tree_util.tree_map_with_path(divided, kernels)


def _by_parameter(kernels: Kernels, layout: Layout, like: Kernels) -> Kernels:
    """The inverse of `_by_block`: sharded like the parameters, with as many blocks as `like` has."""

    def united(path: tuple[Any, ...], x: Array) -> Array:
        for stage in reversed(_stages(layout[path[0].key])):
            x = jax.lax.with_sharding_constraint(x, stage)
        return x[: len(like[path[0].key])]

    return jax.tree_util.tree_map_with_path(united, kernels)


def _stages(where: NamedSharding) -> list[NamedSharding]:
    """Shardings on the way from a kernel's own to blocks that are divided among all devices.

    The mesh axes of one dimension after the other move to the blocks, each by an all-to-all. All at once, the compiler
    gathers the whole array on every device instead.
    """
    _, rows, columns = (*map(_mesh_axes, where.spec), (), (), ())[:3]
    others = tuple(axis for axis in where.mesh.axis_names if axis not in rows + columns)
    specs = ((), rows, columns), (rows, (), columns), (rows + columns, (), ()), (rows + columns + others, (), ())
    return [NamedSharding(where.mesh, PartitionSpec(*spec)) for spec in specs]


def _mesh_axes(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else part
