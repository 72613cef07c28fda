"""The compiled part of sampling: the transformer on a mesh, its modulation table, and the whole Euler loop."""

import functools
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding

from qil_jax.flow import Rescale, euler, guide
from qil_jax.inference.batch import SequenceBatch
from qil_jax.mesh import Rules, constrain
from qil_jax.models.attention import Attend
from qil_jax.models.axes import Axes, Axis
from qil_jax.models.vld_mmdit import Modulation, ModulationTable, VLDMMDiT

OnStep = Callable[[int, int], None]
"""A callback with (steps done, steps) after every Euler step."""
OnTokens = Callable[[int, np.ndarray], None]
"""A callback with (steps done, tokens [b, t, c]) after every Euler step, which costs a copy to the host each."""


class StepOutput(StrEnum):
    """The values that the compiled loop sends to the host after each step."""

    NONE = "none"
    STEPS = "steps"
    TOKENS = "tokens"


class Denoiser:
    """A VLD-MMDiT on a mesh. One program is compiled per shape of batch and number of steps."""

    def __init__(self, model: VLDMMDiT, *, mesh: Mesh, rules: Rules, attend: Attend):
        self.config, self.mesh, self.rules = model.config, mesh, rules
        self._modulation = nnx.split(model.modulation)
        self._backbone = nnx.split(model.backbone)
        self._on_step: OnStep | None = None
        self._on_tokens: OnTokens | None = None
        self._table = jax.jit(functools.partial(_table, self._modulation[0]))
        self._attend, self._pin = attend, constrain(mesh, rules)
        self._loop = jax.jit(self._denoise, static_argnames=("rescale", "output"))

    def __call__(
        self,
        batch: SequenceBatch,
        *,
        rescale: Rescale,
        on_step: OnStep | None = None,
        on_tokens: OnTokens | None = None,
    ) -> np.ndarray:
        """Integrate the batch from noise to data.

        Returns:
          tokens [b, t, c], fp32: the denoised layers where `batch.is_target`, unchanged elsewhere.
        """
        steps = batch.sigmas.shape[0] - 1
        sigmas = np.asarray(batch.sigmas)[:-1]
        if np.all(sigmas == sigmas[:, :1]):
            sigmas = sigmas[:, :1]
        kinds = np.zeros(sigmas.size, np.int32) if self.config.use_additional_t_cond else None
        table = self._table(self._modulation[1], jnp.asarray(sigmas), kinds)
        output = StepOutput.TOKENS if on_tokens else StepOutput.STEPS if on_step else StepOutput.NONE
        self._on_step, self._on_tokens, self._steps = on_step, on_tokens, steps
        try:
            tokens = self._loop(self._backbone[1], table, batch.place(self._put), rescale, output)
            jax.effects_barrier()
            return np.asarray(tokens)
        finally:
            self._on_step = self._on_tokens = None

    def _put(self, x: Array, axes: Axes) -> Array:
        return jax.device_put(x, NamedSharding(self.mesh, self.rules.spec(axes)))

    def _denoise(
        self, state: nnx.State, table: ModulationTable, batch: SequenceBatch, rescale: Rescale, output: StepOutput
    ) -> Array:
        """The traced function: modulation table, Euler loop and guidance."""
        backbone = nnx.merge(self._backbone[0], state)
        dtype = backbone.image_in.kernel[...].dtype
        passes, text = batch.passes, batch.text.astype(dtype)

        def for_passes(x: Array, axis: int = 0) -> Array:
            return jnp.concatenate([x] * passes, axis=axis)

        def velocity(x: Array, mods: ModulationTable) -> Array:
            if mods.out.shape[0] > 1:
                mods = jax.tree.map(lambda m: for_passes(m, m.ndim - 3), mods)
            x = self._pin(for_passes(x.astype(dtype)), (Axis.BATCH, Axis.TOKENS, None))
            v = backbone(x, text, batch.layout, mods, attend=self._attend, constrain=self._pin).astype(jnp.float32)
            if passes == 1:
                return v
            conditional, unconditional = jnp.split(v, 2)
            return guide(conditional, unconditional, batch.scales, rescale)

        def after_step(index: Array, x: Array) -> None:
            if output is StepOutput.STEPS:
                jax.debug.callback(self._after_step, index)
            elif output is StepOutput.TOKENS:
                jax.debug.callback(self._after_step, index, x)

        return euler(
            velocity,
            batch.tokens,
            sigmas=batch.sigmas,
            is_target=batch.is_target,
            step_inputs=table,
            after_step=after_step,
        )

    def _after_step(self, index: Any, tokens: Any = None) -> None:
        if self._on_tokens is not None and tokens is not None:
            self._on_tokens(int(index) + 1, np.asarray(tokens))
        if self._on_step is not None:
            self._on_step(int(index) + 1, self._steps)


def _table(graph: nnx.GraphDef[Modulation], state: nnx.State, sigmas: Array, kinds: Array | None) -> ModulationTable:
    """The modulation table of all steps; the leading axes of its leaves are steps, blocks and samples."""
    steps, rows = sigmas.shape
    flat = nnx.merge(graph, state)(sigmas.reshape(-1), kinds)

    def by_step(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(x.shape[0], steps, rows, *x.shape[2:]), 1, 0)

    return ModulationTable(
        image=by_step(flat.image), text=by_step(flat.text), out=flat.out.reshape(steps, rows, *flat.out.shape[1:])
    )
