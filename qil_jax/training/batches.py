"""Batches as the compiled step reads them, spread over the mesh."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from qil_jax.loader.config import Processes
from qil_jax.mesh import Rules
from qil_jax.models.axes import Axes, Axis
from qil_jax.models.vld_mmdit import TokenLayout
from qil_jax.training.experiment import ExperimentError

NO_TARGET, COMPOSITE, BOTTOM, UPPER = -1, 0, 1, 2
KINDS = ("composite", "bottom", "upper")
"""Names of what a target token shows: the composite (or a single picture), the bottom layer, or a layer above it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowBatch:
    """Rows of the transformer.

    Attributes:
      clean: tokens of the pictures' latents, conditions and padding included.
      text: states of the prompts, sample after sample.
      layout: positions and segments of all tokens.
      weights: weight of each token in the loss; 0 for conditions and padding.
      kinds: NO_TARGET, COMPOSITE, BOTTOM or UPPER for each token.
      target_kinds: row of the transformer's addition embedding.
      rows: number of each row in the whole batch, from which its noise follows.
      picture_tokens: tokens of one picture of each row, for the shift of noise levels; a row's pictures have one size.
    """

    clean: Float[Array, "b t c"]
    text: Float[Array, "b s e"]
    layout: TokenLayout
    weights: Float[Array, "b t"]
    kinds: Int[Array, "b t"]
    target_kinds: Int[Array, " b"]
    rows: Int[Array, " b"]
    picture_tokens: Int[Array, " b"]

    @property
    def is_target(self) -> Bool[Array, "b t"]:
        """Which tokens are noised and denoised."""
        return self.kinds != NO_TARGET


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureBatch:
    """Pictures for the RGBA-VAE.

    Attributes:
      pixels: straight RGBA.
      weights: weight of each picture in the loss; 0 for padding.
      rows: number of each picture in the whole batch, from which its noise follows.
    """

    pixels: UInt8[Array, "b y x 4"]
    weights: Float[Array, " b"]
    rows: Int[Array, " b"]


class RowPlacement:
    """Which rows of a batch this process reads, and how they become arrays over the mesh."""

    def __init__(self, mesh: Mesh, rules: Rules, rows: int):
        """Place the `rows` of a whole batch.

        Raises:
          ExperimentError: if the mesh does not divide them.
        """
        ways = rules.ways(Axis.BATCH, mesh)
        if rows % ways:
            raise ExperimentError(
                f"{rows} rows do not divide over {ways} parts of the mesh (data and fsdp): make data.loader.rows a "
                f"multiple of {ways}"
            )
        self.mesh, self.rules, self.rows = mesh, rules, rows
        indices = self._sharding((Axis.BATCH,)).addressable_devices_indices_map((rows,)).values()
        spans = [index[0].indices(rows)[:2] for index in indices if index is not None]
        self.first, stop = min(start for start, _ in spans), max(end for _, end in spans)
        self.count = stop - self.first

    @property
    def processes(self) -> Processes:
        """Index and count for the loader. Processes that hold parts of the same rows read the same ones."""
        return Processes(index=self.first // self.count, count=self.rows // self.count)

    def put(self, local: Shaped[np.ndarray, "b *n"], axes: Axes) -> Shaped[Array, "rows *n"]:
        """This process's rows of an array, its first axis, as an array of all rows."""
        shape = (local.shape[0] // self.count * self.rows, *local.shape[1:])
        offset = local.shape[0] // self.count * self.first

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(shape[0])
            return local[(slice(start - offset, stop - offset), *index[1:])]

        return jax.make_array_from_callback(shape, self._sharding(axes), part)

    def put_all(self, tree: Any) -> Any:
        """Arrays [b, t, ...] of a pytree, by rows and, from the second axis on, by tokens."""
        axes = lambda x: (Axis.BATCH, Axis.TOKENS, *(None,) * x.ndim)[: x.ndim]
        return jax.tree.map(lambda x: self.put(x, axes(x)), tree)

    def _sharding(self, axes: Axes) -> NamedSharding:
        return NamedSharding(self.mesh, self.rules.spec(axes))
