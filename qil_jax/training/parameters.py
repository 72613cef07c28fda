"""A model split into its parameters, a dictionary by path, and a function from parameters to the model."""

from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

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
        paths = {leaf.get_value(): "/".join(map(str, path)) for path, leaf in nnx.to_flat_state(order)}
        self.paths = [paths[i] for i in range(len(self._leaves))]

    def __call__(self, params: Params, dtype: Any = None) -> Model:
        """The model with these parameters, cast to `dtype` if one is given."""
        leaves = [params[path] if dtype is None else params[path].astype(dtype) for path in self.paths]
        return nnx.merge(self._graph, jax.tree.unflatten(self._tree, leaves))


def params_of(model: nnx.Module) -> Params:
    """The parameters of a model that is not abstract."""
    return {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def copied(tree: Tree) -> Tree:
    """The same values in buffers of their own, so that one of the two may be donated."""
    return jax.tree.map(jnp.copy, tree)
