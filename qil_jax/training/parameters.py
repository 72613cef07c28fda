"""Separation of a model into a dictionary of parameters by path and a function from parameters to the model."""

from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from qil_jax.models.layers import use_matmul
from qil_jax.models.paths import slashed
from qil_jax.models.products import matmul_by_rows

Params = dict[str, Array]
"""Parameters by slash-joined path, as in `mesh.shardings` and `weights.tables`."""
Model = TypeVar("Model", bound=nnx.Module)
Tree = TypeVar("Tree")


class Network(Generic[Model]):
    """A model without its parameters."""

    def __init__(self, model: Model):
        """`model` may be abstract."""
        self._graph, state = nnx.split(model)
        self._leaves, self._tree = jax.tree.flatten(state)
        order = jax.tree.unflatten(self._tree, range(len(self._leaves)))
        paths = {leaf.get_value(): slashed(path) for path, leaf in nnx.to_flat_state(order)}
        self.paths = [paths[i] for i in range(len(self._leaves))]

    def __call__(self, params: Params, dtype: Any = None) -> Model:
        """The model with these parameters, cast to `dtype` if one is given."""
        leaves = [params[path] if dtype is None else params[path].astype(dtype) for path in self.paths]
        return nnx.merge(self._graph, jax.tree.unflatten(self._tree, leaves))


def training_network(model: Model) -> Network[Model]:
    """The network of a (possibly abstract) model, with matrix products whose gradients are fast on this backend.

    On CPUs `matmul_by_rows` replaces `matmul`, in `model` itself too.
    """
    if jax.default_backend() == "cpu":
        use_matmul(model, matmul_by_rows)
    return Network(model)


def params_of(model: nnx.Module) -> Params:
    """The parameters of a model that is not abstract."""
    return {slashed(path): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def copied(tree: Tree) -> Tree:
    """A copy in separate buffers, so that either may be donated."""
    return jax.tree.map(jnp.copy, tree)
