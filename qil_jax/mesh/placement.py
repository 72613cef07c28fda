"""Placement of parameters, batches and activations on a mesh by the sharding rules."""

import math

import jax
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding

from qil_jax.mesh.rules import MeshError
from qil_jax.mesh.sharding import Sharding
from qil_jax.models.axes import Axes, Constrain
from qil_jax.models.paths import slashed


def shardings(model: nnx.Module, sharding: Sharding) -> dict[str, NamedSharding]:
    """The sharding of every parameter of a (possibly abstract) model, by slash-joined path.

    Raises:
      MeshError: if an axis is unknown, mesh axes collide, or a dimension does not divide; all problems are listed.
    """
    problems = sharding.problems()
    result: dict[str, NamedSharding] = {}
    if problems:
        raise MeshError(problems)
    for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        name = slashed(path)
        axes: Axes = parameter.get_metadata()["axes"]
        try:
            result[name] = sharding.named(axes)
        except MeshError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
            continue
        for size, axis in zip(parameter.shape, axes, strict=True):
            if axis is not None and size % (ways := sharding.ways(axis)):
                problems.append(
                    f"{name}: dimension '{axis}' of {size} does not divide into {ways} parts "
                    f"({sharding.parts(axis)}): use fewer along these mesh axes"
                )
    if problems:
        raise MeshError(problems)
    return result


def place(model: nnx.Module, sharding: Sharding) -> None:
    """Move a model's parameters onto the mesh, in place.

    Raises:
      MeshError: if the rules do not fit the model, see `shardings`.
    """
    by_path = shardings(model, sharding)
    state = nnx.state(model, nnx.Param)
    for path, parameter in nnx.to_flat_state(state):
        parameter.set_value(jax.device_put(parameter[...], by_path[slashed(path)]))
    nnx.update(model, state)


def constrain(sharding: Sharding) -> Constrain:
    """A function that constrains activations to the sharding of their logical axes; shards must divide the sizes."""
    if sharding.mesh.size == 1:
        return lambda x, axes: x

    def pin(x: Array, axes: Axes) -> Array:
        return jax.lax.with_sharding_constraint(x, sharding.named(axes))

    return pin


def describe(model: nnx.Module, sharding: Sharding) -> str:
    """A table of every parameter: shape, logical axes, partition, and bytes per device; totals at the end."""
    rows = [("parameter", "shape", "logical axes", "partition", "bytes per device")]
    total = 0
    by_path = shardings(model, sharding)
    for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        name = slashed(path)
        axes = parameter.get_metadata()["axes"]
        placed = by_path[name]
        size = math.prod(placed.shard_shape(parameter.shape)) * parameter.dtype.itemsize
        total += size
        shape = "x".join(map(str, parameter.shape))
        rows.append((name, shape, " ".join("-" if a is None else a for a in axes), str(placed.spec), f"{size:,}"))
    rows.append(("total", "", "", "", f"{total:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
