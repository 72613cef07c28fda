"""The modulation of all steps, computed once, so that a third of the transformer's parameters can leave the devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from qil_jax.mesh import fetch, put
from qil_jax.models.vld_mmdit import Modulation, ModulationTable


class Modulator:
    """The modulation network on a mesh.

    Attributes:
      state: the network's parameters, which may be abstract.
    """

    def __init__(self, modulation: Modulation, *, mesh: Mesh):
        self._whole = NamedSharding(mesh, PartitionSpec())
        graph, self.state = nnx.split(modulation)
        additional = modulation.config.use_additional_t_cond
        self._run = jax.jit(functools.partial(_table, graph, additional), out_shardings=self._whole)

    def __call__(self, sigmas: Float[np.ndarray, " steps1"]) -> ModulationTable:
        """The table of all steps of a schedule, on the host; the leading axes of its leaves are steps and blocks."""
        return jax.tree.map(fetch, self._run(self.state, put(np.asarray(sigmas[:-1], np.float32), self._whole)))

    def lower(self, steps: int) -> jax.stages.Lowered:
        """The program of a schedule of `steps` steps."""
        return self._run.lower(self.state, self._levels(steps))

    def step_shapes(self, samples: int) -> ModulationTable:
        """The slice of the tables that one step of `samples` samples takes, as shapes on every device of the mesh."""
        table = jax.eval_shape(self._run, self.state, self._levels(1))
        shape = lambda x: jax.ShapeDtypeStruct(_of_samples(x.shape[1:], samples), x.dtype, sharding=self._whole)
        return jax.tree.map(shape, table)

    def _levels(self, steps: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((steps,), jnp.float32, sharding=self._whole)


def step_slice(tables: list[ModulationTable], step: int) -> ModulationTable:
    """The modulation of one step of a batch, on the host, from the table of each sample."""
    return jax.tree.map(lambda *leaves: np.concatenate([leaf[step] for leaf in leaves], axis=-3), *tables)


def _of_samples(shape: tuple[int, ...], samples: int) -> tuple[int, ...]:
    return (*shape[:-3], samples, *shape[-2:])


def _table(graph: nnx.GraphDef[Modulation], additional: bool, state: nnx.State, sigmas: Array) -> ModulationTable:
    """The table of noise levels [steps]; leaves [steps, k, 1, 6, d] and [steps, 1, 2, d]."""
    kinds = jnp.zeros(sigmas.shape, jnp.int32) if additional else None
    flat = nnx.merge(graph, state)(sigmas, kinds)
    by_step = lambda x: jnp.moveaxis(x, 1, 0)[:, :, None]
    return ModulationTable(image=by_step(flat.image), text=by_step(flat.text), out=flat.out[:, None])
