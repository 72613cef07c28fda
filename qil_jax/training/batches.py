"""Batches of the compiled training step, sharded over the mesh."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from qil_jax.loader.config import Processes
from qil_jax.mesh import Sharding
from qil_jax.models.axes import Axes, Axis
from qil_jax.models.vld_mmdit import TokenLayout
from qil_jax.training.experiment import ExperimentError

NO_TARGET, COMPOSITE, BOTTOM, UPPER = -1, 0, 1, 2
KINDS = ("composite", "bottom", "upper")
"""Names of the kinds of target tokens: composite (or a single picture), bottom layer, and layer above it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowBatch:
    """A batch of the transformer. A row is one sequence, which may hold several samples.

    Attributes:
      clean: tokens of the pictures' latents, including conditions and padding.
      text: hidden states of the prompts, sample after sample.
      layout: positions and segments of all tokens.
      weights: weight of each token in the loss; 0 for conditions and padding.
      kinds: kind of each token: NO_TARGET, COMPOSITE, BOTTOM or UPPER.
      target_kinds: row of the transformer's addition embedding for each row of the batch.
      rows: index of each row in the global batch, from which its noise is drawn.
      picture_tokens: number of tokens of each picture of a row, which all have one size; it shifts the noise levels.
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
        """A mask that is true for tokens that are noised and denoised."""
        return self.kinds != NO_TARGET


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureBatch:
    """A batch of the RGBA-VAE.

    Attributes:
      pixels: pictures in straight (not premultiplied) RGBA.
      weights: weight of each picture in the loss; 0 for padding.
      rows: index of each picture in the global batch, from which its noise is drawn.
    """

    pixels: UInt8[Array, "b y x 4"]
    weights: Float[Array, " b"]
    rows: Int[Array, " b"]


class RowPlacement:
    """The rows of a batch that this process reads, and their placement on the mesh."""

    def __init__(self, sharding: Sharding, rows: int, *, microbatches: int = 1):
        """Assign the `rows` rows of a global batch to processes and devices.

        Raises:
          ExperimentError: if the shards of the mesh do not divide them, or those of a microbatch.
        """
        ways = sharding.ways(Axis.BATCH)
        if rows % ways:
            raise ExperimentError(
                f"{rows} rows do not divide over {ways} parts of the mesh (data and fsdp): make data.loader.rows a "
                f"multiple of {ways}"
            )
        if rows % (ways * microbatches):
            raise ExperimentError(
                f"{rows} rows in {microbatches} microbatches are {rows // microbatches} rows each, which do not divide "
                f"over {ways} parts of the mesh (data and fsdp): lower optimiser.accumulate, or make data.loader.rows "
                f"a multiple of {ways * microbatches}"
            )
        self.sharding, self.rows = sharding, rows
        indices = self.sharding.named((Axis.BATCH,)).addressable_devices_indices_map((rows,)).values()
        spans = [index[0].indices(rows)[:2] for index in indices if index is not None]
        first, last = min(start for start, _ in spans), max(end for _, end in spans) - 1
        # On a torus the rows of a process may lie apart: it reads the smallest share of all rows that holds its own.
        here = last - first + 1
        self.count = next(n for n in range(here, rows + 1) if rows % n == 0 and first // n == last // n)
        self.first = first // self.count * self.count

    @property
    def processes(self) -> Processes:
        """The loader's process index and count. Processes that hold shards of the same rows read the same rows."""
        return Processes(index=self.first // self.count, count=self.rows // self.count)

    def put(self, local: Shaped[np.ndarray, "b *n"], axes: Axes) -> Shaped[Array, "rows *n"]:
        """A global array of all rows from this process's rows, which are its first axis."""
        shape = (local.shape[0] // self.count * self.rows, *local.shape[1:])
        offset = local.shape[0] // self.count * self.first

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(shape[0])
            return local[(slice(start - offset, stop - offset), *index[1:])]

        return jax.make_array_from_callback(shape, self.sharding.named(axes), part)

    def put_all(self, tree: Any) -> Any:
        """A pytree of global arrays [b, t, ...], sharded by rows and, where there is a second axis, by tokens."""
        axes = lambda x: (Axis.BATCH, Axis.TOKENS, *(None,) * x.ndim)[: x.ndim]
        return jax.tree.map(lambda x: self.put(x, axes(x)), tree)
