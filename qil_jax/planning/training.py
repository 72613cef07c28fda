"""The training step of a preset with shapes in place of arrays: what `qil train` compiles, without any parameter."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from qil_jax.kernels import attend_for
from qil_jax.mesh import TRAINING_RULES, Sharding, constrain, make_mesh
from qil_jax.models.axes import Axis
from qil_jax.models.stack import Scan
from qil_jax.models.vld_mmdit import TokenLayout
from qil_jax.planning.abstract import device_bytes, fresh_network, network, placed_shapes
from qil_jax.planning.cache import Results, planned
from qil_jax.planning.chips import Topology
from qil_jax.planning.devices import compile_only_devices, places
from qil_jax.planning.result import Result, Subject
from qil_jax.training.batches import FlowBatch, PictureBatch, RowPlacement
from qil_jax.training.experiment import Experiment, Inputs
from qil_jax.training.flops import flow_flops, vae_flops_per_pixel
from qil_jax.training.lora import FACTORS
from qil_jax.training.objectives import Compute, flow_objective, vae_objective
from qil_jax.training.parameters import Network
from qil_jax.training.setup import split
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.step import TrainState, abstract_state, make_step
from qil_jax.weights import Component

TOKEN_WIDTH, TEXT_WIDTH = 64, 3584
"""Features of an image token and of a text token of the release."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A step of training that is to be planned.

    Attributes:
      topology: slice.
      experiment: config of the run, whose mesh has as many devices.
    """

    topology: str
    experiment: Experiment


def plan_training(
    plan: TrainingPlan, *, effort: float = 0.0, kept: Results | None = None, name: str = "training"
) -> Result:
    """Compile the step of a run and read the program.

    Args:
      plan: what is planned.
      effort: effort of the compiler; below 0 only memory is read.
      kept: earlier results; that of the same program is returned, a new one is added.
      name: name of the result.

    Raises:
      QilError: if the compiler is missing, or topology, mesh, rows or attention do not fit one another.
    """
    topology, experiment = Topology.parse(plan.topology), plan.experiment
    mesh = make_mesh(experiment.mesh, compile_only_devices(topology))
    require_rows(experiment, mesh)
    made = abstract_step(experiment, mesh)
    subject = Subject(
        topology=topology,
        mesh={str(axis): size for axis, size in mesh.shape.items()},
        places=places(list(mesh.devices.flat), topology),
        minimum_flops=made.flops,
        beside=_encoders(experiment, Sharding(mesh, TRAINING_RULES)),
    )
    return planned(made.lower(), subject, name=name, effort=effort, kept=kept)


def _encoders(experiment: Experiment, sharding: Sharding) -> dict[str, int]:
    """Bytes on one device of the frozen networks that a run keeps beside its step."""
    if experiment.stage is Stage.RGBA_VAE:
        return {}
    kinds = {"VAE": Component.VAE}
    if experiment.data.inputs is Inputs.PICTURES:
        kinds["text encoder"] = Component.TEXT_ENCODER
    dtype = jnp.dtype(experiment.precision)
    shapes = {name: placed_shapes(network(kind), sharding, dtype) for name, kind in kinds.items()}
    return {name: device_bytes(part) for name, part in shapes.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbstractStep:
    """A step of training with its arguments as shapes.

    Attributes:
      step: compiled function of a run.
      state: training state.
      frozen: frozen parameters of the trained network.
      batch: rows of a step.
      flops: FLOPs of the step, without what is computed twice to save memory.
    """

    step: jax.stages.Wrapped
    state: TrainState
    frozen: dict[str, Any]
    batch: FlowBatch | PictureBatch
    flops: float

    def lower(self) -> jax.stages.Lowered:
        """The step lowered for the devices of its mesh."""
        return self.step.lower(self.state, self.frozen, self.batch)


def abstract_step(experiment: Experiment, mesh: Mesh, *, rows: int | None = None) -> AbstractStep:
    """The step of an experiment at the released size.

    Args:
      experiment: config of the run.
      mesh: mesh of the run, whose devices need not exist.
      rows: number of rows of a batch; None: that of the experiment.

    Raises:
      MeshError: if the rules do not fit the network.
      ExperimentError: if the rows do not divide over the mesh.
    """
    rows = experiment.data.loader.rows if rows is None else rows
    build = _vae_step if experiment.stage is Stage.RGBA_VAE else _flow_step
    return build(experiment, Sharding(mesh, TRAINING_RULES), rows)


def require_rows(experiment: Experiment, mesh: Mesh) -> None:
    """Raises ExperimentError if the rows of a step do not divide over the mesh."""
    sharding, rows = Sharding(mesh, TRAINING_RULES), experiment.data.loader.rows
    RowPlacement(sharding, rows, microbatches=experiment.optimiser.accumulate)


def _flow_step(experiment: Experiment, sharding: Sharding, rows: int) -> AbstractStep:
    """The step of the transformer."""
    model: Any = fresh_network(experiment.stage.component)
    if experiment.lora is not None:
        experiment.lora.add_to(model)
    heads = model.config.num_attention_heads
    attend = attend_for(experiment.attention, experiment.spread, heads=heads, sharding=sharding, backward=True)
    params: Any = placed_shapes(model, sharding, jnp.float32)
    frozen: dict[str, Any] = {}
    dtype = jnp.dtype(experiment.precision)
    if experiment.lora is not None or experiment.trainable:
        params, frozen = split(params, experiment.trainable if experiment.lora is None else FACTORS)
    if experiment.lora is not None:
        frozen = {path: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding) for path, x in frozen.items()}
    compute = Compute(
        dtype=dtype,
        attend=attend,
        scan=Scan(remat=experiment.remat),
        constrain=constrain(sharding),
    )
    objective = flow_objective(Network(model), experiment.flow_loss, compute)
    state = abstract_state(params, experiment.optimiser, experiment.steps)
    batch = _flow_batch(experiment, sharding, rows)
    return AbstractStep(
        step=_made(experiment, objective, state),
        state=state,
        frozen=frozen,
        batch=batch,
        flops=flow_flops(model.config, batch, frozen=experiment.lora is not None),
    )


def _flow_batch(experiment: Experiment, sharding: Sharding, rows: int) -> FlowBatch:
    """Rows that are full of square pictures, with two prompts each."""
    loader, ways = experiment.data.loader, sharding.ways(Axis.RESIDUAL)
    up = lambda size: -(-size // ways) * ways
    image, text = up(loader.buckets.row_tokens), up(2 * experiment.data.text_tokens)

    def put(*shape: int, dtype: Any = jnp.int32) -> Any:
        axes = (Axis.BATCH, Axis.TOKENS, None)[: len(shape)]
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.named(axes))

    return FlowBatch(
        clean=put(rows, image, TOKEN_WIDTH, dtype=jnp.float32),
        text=put(rows, text, TEXT_WIDTH, dtype=jnp.float32),
        layout=TokenLayout(
            image_positions=put(rows, image, 3),
            text_positions=put(rows, text, 3),
            image_segments=put(rows, image),
            text_segments=put(rows, text),
        ),
        weights=put(rows, image, dtype=jnp.float32),
        kinds=put(rows, image),
        target_kinds=put(rows),
        rows=put(rows),
        picture_tokens=put(rows),
    )


def _vae_step(experiment: Experiment, sharding: Sharding, rows: int) -> AbstractStep:
    """The step of the RGBA-VAE, without LPIPS and the frozen initial VAE."""
    model: Any = fresh_network(experiment.stage.component)
    side = experiment.data.loader.buckets.resolutions[0]
    params = placed_shapes(model, sharding, jnp.float32)
    loss = dataclasses.replace(experiment.vae_loss, reference_kl=0.0, perceptual=0.0)
    dtype = jnp.dtype(experiment.precision)
    objective = vae_objective(Network(model), loss, dtype=dtype, reference=None, perceptual_loss=None)
    state = abstract_state(params, experiment.optimiser, experiment.steps)

    def put(*shape: int, dtype: Any) -> Any:
        axes = (Axis.BATCH, *(None,) * (len(shape) - 1))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.named(axes))

    batch = PictureBatch(
        pixels=put(rows, side, side, 4, dtype=jnp.uint8),
        weights=put(rows, dtype=jnp.float32),
        rows=put(rows, dtype=jnp.int32),
    )
    flops = vae_flops_per_pixel(model) * rows * side**2
    return AbstractStep(step=_made(experiment, objective, state), state=state, frozen={}, batch=batch, flops=flops)


def _made(experiment: Experiment, objective: Any, state: TrainState) -> jax.stages.Wrapped:
    dropout = 0.0 if experiment.lora is None else experiment.lora.dropout
    return make_step(
        objective, experiment.optimiser, steps=experiment.steps, seed=experiment.seed, like=state, dropout=dropout
    )
