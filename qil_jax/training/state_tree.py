"""A training state as plain dictionaries of arrays, and checksums of its bits.

A checksum is the sum of the elements' bit patterns modulo 2^32, weighted by position, and independent of the mesh. It
detects arrays that were truncated, lost or changed on disk.
"""

from enum import StrEnum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Shaped

from qil_jax.models.paths import dotted
from qil_jax.training.parameters import Params
from qil_jax.training.step import TrainState

PIECE_BYTES = 64 << 20
"""Maximum size of the piece of an array on the host of which a checksum is computed at once, if it has several rows."""


class Weights(StrEnum):
    """The parts of a state's tree that hold trained parameters."""

    PARAMS = "params"  # the parameters themselves
    EMA = "ema_params"  # their exponential moving average


def checksums(state: TrainState) -> dict[str, int]:
    """The checksum of every array of a state, by its path in the tree."""
    leaves = jax.tree_util.tree_flatten_with_path(state_tree(state))[0]
    sums = _sums([leaf for _, leaf in leaves])
    return {jax.tree_util.keystr(path): int(value) for (path, _), value in zip(leaves, np.asarray(sums), strict=True)}


def checksum(x: Shaped[np.ndarray, "n *rest"]) -> int:
    """The checksum of an array on the host, computed in pieces."""
    rows = max(1, PIECE_BYTES * len(x) // max(x.nbytes, 1))
    return sum(int(_piece_sum(x[i : i + rows], i)) for i in range(0, len(x), rows)) % 2**32


@jax.jit
def _sums(arrays: list[Array]) -> Array:
    return jnp.stack([_piece_sum(x, 0) for x in arrays])


@jax.jit  # within `_sums`, too: what has one shape is traced once
def _piece_sum(x: Array, first: Array | int) -> Array:
    """The sum over the rows of an array that begin at index `first`."""
    bits = x.astype(jnp.uint32) if jnp.issubdtype(x.dtype, jnp.integer) else jax.lax.bitcast_convert_type(x, jnp.uint32)
    # Weights by position are odd, so exchanged elements change the sum; computed per axis, they need no communication.
    weight = jnp.ones((), jnp.uint32)
    for axis in range(bits.ndim):
        place = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = place + jnp.uint32(first) if axis == 0 else place
        weight = weight * (2 * place + 1) + place
    return jnp.sum(bits * (2 * weight + 1), dtype=jnp.uint32)


def state_tree(state: TrainState) -> dict[str, Any]:
    """A state as plain dictionaries, which orbax restores independently of our classes and optax's."""
    return {
        Weights.PARAMS.value: _dotted(state.params),
        Weights.EMA.value: _dotted(state.ema_params),
        "opt_state": {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state.opt_state))},
        "counters": {"step": state.step, "skipped": state.skipped, "failing": state.failing},
    }


def _dotted(params: Params) -> Params:
    """Parameters with dotted names, which are valid file names."""
    return {dotted(path): value for path, value in params.items()}


def state_of(tree: dict[str, Any], like: TrainState) -> TrainState:
    """The inverse of `state_tree`, with the optimiser state's structure taken from `like`."""
    leaves, form = jax.tree.flatten(like.opt_state)
    return TrainState(
        params={path: tree["params"][name] for path, name in zip(like.params, _dotted(like.params), strict=True)},
        ema_params={
            path: tree["ema_params"][name] for path, name in zip(like.params, _dotted(like.params), strict=True)
        },
        opt_state=jax.tree.unflatten(form, [tree["opt_state"][str(i)] for i in range(len(leaves))]),
        **tree["counters"],
    )
