"""The compiled part of sampling: one Euler step of the transformer on a mesh, and the loop that calls it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from qil_jax.choices import Passes, Rescale
from qil_jax.errors import QilError
from qil_jax.flow import euler_step, guide
from qil_jax.inference.batch import SequenceBatch
from qil_jax.inference.modulator import Modulator, step_slice
from qil_jax.kernels import with_scattered_sums
from qil_jax.mesh import MeshAxis, Sharding, constrain, fetch, put
from qil_jax.models.attention import Attend
from qil_jax.models.axes import Axes, Axis
from qil_jax.models.halves import reordering_programs, rotated_by_halves
from qil_jax.models.vld_mmdit import Backbone, ModulationTable, TokenLayout, VLDMMDiT

OnStep = Callable[[int, int], None]
"""A callback with (steps done, steps) after every Euler step."""
OnTokens = Callable[[int, np.ndarray], None]
"""A callback with (steps done, tokens [b, t, c]) after every Euler step, which costs a copy to the host each."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Constants:
    """The inputs of a step that are the same in all steps of a batch; see `SequenceBatch`."""

    is_target: Any
    scales: Any
    text: Any
    layout: TokenLayout


class Denoiser:
    """A VLD-MMDiT on a mesh. One program is compiled per shape of batch, whatever the number of steps.

    The program is one Euler step and takes the backbone's parameters only; latents stay on the devices, in fp32.

    Attributes:
      config: the transformer's config.
      modulator: the modulation network of the same model.
      state: the backbone's parameters, which may be abstract.
    """

    def __init__(self, model: VLDMMDiT, *, sharding: Sharding, attend: Attend, passes: Passes = Passes.BATCH):
        """Take a model whose parameters lie on the mesh, or are abstract with shardings, for `lower`.

        Raises:
          QilError: if the mesh splits guidance over its axis cfg, but the passes are sequential.
        """
        split = sharding.mesh.shape[MeshAxis.CFG]
        if passes is Passes.SEQUENTIAL and split > 1:
            raise QilError(
                f"the mesh computes the passes of guidance at once on cfg={split}: "
                f"use passes {Passes.BATCH}, or a mesh without cfg"
            )
        self.config, self.sharding = model.config, sharding
        self.modulator = Modulator(model.modulation, mesh=sharding.mesh)
        self._graph, self.state = nnx.split(with_scattered_sums(rotated_by_halves(model.backbone), sharding))
        self._attend, self._passes, self._pin = attend, passes, constrain(sharding)
        self._by_sample = split == 1
        self._step = jax.jit(
            self._euler_step,
            static_argnames="rescale",
            donate_argnames="tokens",
            out_shardings=self.sharding.named((Axis.SAMPLE, Axis.TOKENS, None)),
        )

    def __call__(
        self,
        batch: SequenceBatch,
        tables: Sequence[ModulationTable],
        *,
        rescale: Rescale,
        on_step: OnStep | None = None,
        on_tokens: OnTokens | None = None,
    ) -> Float[np.ndarray, "b t c"]:
        """Integrate the batch from noise to data.

        Args:
          batch: the batch, on the host.
          tables: the modulator's table of each of the first samples; the last one's is that of all further samples.
          rescale: rescaling of a guided velocity's norm.
          on_step: callback after every step, for which the loop waits.
          on_tokens: callback with the tokens after every step.

        Returns:
          The denoised layers where `batch.is_target`, and the batch's own tokens elsewhere; fp32.
        """
        samples, steps = batch.tokens.shape[0], batch.sigmas.shape[0] - 1
        tables = [*tables, *[tables[-1]] * (samples - len(tables))]
        placed = batch.place(lambda x, axes: put(x, self.sharding.named(axes)), by_sample=self._by_sample)
        tokens, constants = placed.tokens, _constants(placed)
        for i in range(steps):
            levels = put(np.asarray(batch.sigmas)[i : i + 2], self.sharding.named((None, Axis.SAMPLE)))
            table = jax.tree.map(lambda x: put(x, self.sharding.named(())), step_slice(tables, i))
            tokens = self._step(self.state, tokens, levels, table, constants, rescale=rescale)
            if on_tokens is not None:
                on_tokens(i + 1, fetch(tokens))
            if on_step is not None:
                jax.block_until_ready(tokens)
                on_step(i + 1, steps)
        return fetch(tokens)

    def lower(self, batch: SequenceBatch, rescale: Rescale) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
        """The two programs of a batch: the modulation table of all its steps, and one step.

        Args:
          batch: a batch of arrays or of shapes, of which only shapes and dtypes matter.
          rescale: rescaling of a guided velocity's norm.
        """

        def abstract(x: Any, axes: Axes) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharding.named(axes))

        shapes = batch.place(abstract)
        levels = jax.ShapeDtypeStruct((2, *shapes.sigmas.shape[1:]), jnp.float32, sharding=shapes.sigmas.sharding)
        table = self.modulator.step_shapes(shapes.tokens.shape[0])
        step = self._step.lower(self.state, shapes.tokens, levels, table, _constants(shapes), rescale=rescale)
        return self.modulator.lower(batch.sigmas.shape[0] - 1), step

    def lower_loading(self) -> list[jax.stages.Lowered]:
        """The programs that the constructor of a denoiser runs, whose model is not abstract."""
        return reordering_programs(nnx.merge(self._graph, self.state))

    def _euler_step(
        self,
        state: nnx.State,
        tokens: Array,
        sigmas: Array,
        table: ModulationTable,
        constants: Constants,
        *,
        rescale: Rescale,
    ) -> Array:
        """The traced function: the transformer's passes, guidance and one Euler step."""
        backbone = nnx.merge(self._graph, state)
        velocities = self._velocities(backbone, tokens, table, constants)
        if len(velocities) == 1:
            velocity = velocities[0]
        else:
            velocity = guide(velocities[0], velocities[1], constants.scales, rescale)
        return euler_step(tokens, velocity, sigmas=sigmas, is_target=constants.is_target)

    def _velocities(self, backbone: Backbone, tokens: Array, table: ModulationTable, constants: Constants) -> Array:
        """Velocities [g, b, t, c] of the g passes in fp32, which devices that the mesh's axis cfg tells apart share."""
        dtype, samples = backbone.image_in.kernel[...].dtype, tokens.shape[0]
        passes = constants.text.shape[0] // samples
        conditions = (constants.text.astype(dtype), constants.layout)
        inner = 1 if self._by_sample else 0  # a device has all passes of its samples, or one pass on each side of cfg

        def run(x: Array, given: tuple[Array, TokenLayout], table: ModulationTable) -> Array:
            x = self._pin(x, (Axis.BATCH, Axis.TOKENS, None))
            return backbone(x, *given, table, attend=self._attend, constrain=self._pin)

        def repeated(x: Array, axis: int = 0) -> Array:
            before, after = x.shape[:axis], x.shape[axis + 1 :]
            shape = (*x.shape[: axis + inner], passes, *x.shape[axis + inner :])
            return jnp.broadcast_to(jnp.expand_dims(x, axis + inner), shape).reshape(*before, -1, *after)

        def by_pass(x: Array) -> Array:
            rows = (samples, passes) if self._by_sample else (passes, samples)
            return jnp.moveaxis(x.reshape(*rows, *x.shape[1:]), inner, 0)

        x = tokens.astype(dtype)
        if self._passes is Passes.SEQUENTIAL and passes > 1:
            leaves, structure = jax.tree.flatten(conditions)
            one_pass = lambda given: run(x, jax.tree.unflatten(structure, given), table)
            velocities = jax.lax.map(one_pass, [by_pass(leaf) for leaf in leaves])
        else:
            if samples > 1:
                table = jax.tree.map(lambda m: repeated(m, m.ndim - 3), table)
            velocities = by_pass(run(repeated(x), conditions, table))
        return self._pin(velocities, (None, Axis.SAMPLE, Axis.TOKENS, None)).astype(jnp.float32)


def _constants(batch: SequenceBatch) -> Constants:
    return Constants(is_target=batch.is_target, scales=batch.scales, text=batch.text, layout=batch.layout)
