"""Trace the training step of every preset at full size on eight devices, and print what came of it as JSON.

A program of its own, because the tests' run-time type checks want arrays where this has shapes only.
"""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from qil_jax.kernels import attend_for
from qil_jax.mesh import TRAINING_RULES, MeshShape, constrain, make_mesh, shardings
from qil_jax.models.axes import Axis
from qil_jax.models.paths import slashed
from qil_jax.models.stack import Scan
from qil_jax.models.vld_mmdit import TokenLayout
from qil_jax.training.batches import FlowBatch, PictureBatch
from qil_jax.training.experiment import Experiment
from qil_jax.training.lora import FACTORS
from qil_jax.training.objectives import Compute, flow_objective, vae_objective
from qil_jax.training.optimiser import make_optimiser
from qil_jax.training.parameters import Network
from qil_jax.training.setup import split
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.step import TrainState, make_step, state_shardings
from tools.presets import SLICES, network, preset, trained_network

ROWS = 8


def arrays(model: nnx.Module, mesh: Any, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters of a model by path: shapes and shardings without values."""
    placed = shardings(model, mesh, TRAINING_RULES)
    found = {slashed(path): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    return {path: jax.ShapeDtypeStruct(shape, dtype, sharding=placed[path]) for path, shape in found.items()}


def state_of(params: dict[str, Any], experiment: Experiment, mesh: Any) -> TrainState:
    """A training state without values."""
    opt_state = jax.eval_shape(make_optimiser(experiment.optimiser, experiment.steps).init, params)
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        opt_state,
        state_shardings(opt_state, params),
    )
    counter = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    counters = dict.fromkeys(("step", "skipped", "failing"), counter)
    return TrainState(params=params, ema_params=dict(params), opt_state=placed, **counters)


def flow_inputs(experiment: Experiment, mesh: Any, rows: int) -> FlowBatch:
    """A batch of the preset's rows, each full of square pictures, with two prompts a row."""
    loader, text = experiment.data.loader, 2 * experiment.data.text_tokens
    image = loader.buckets.row_tokens

    def put(*shape: int, dtype: Any = jnp.int32) -> Any:
        axes = (Axis.BATCH, Axis.TOKENS, None)[: len(shape)]
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, TRAINING_RULES.spec(axes)))

    return FlowBatch(
        clean=put(rows, image, 64, dtype=jnp.float32),
        text=put(rows, text, 3584, dtype=jnp.float32),
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


def flow_step(experiment: Experiment, mesh: Any, rows: int) -> tuple[Any, TrainState, Any, FlowBatch]:
    """The step of a preset of the transformer, with its arguments."""
    model = trained_network(experiment)
    params, frozen = arrays(model, mesh, jnp.float32), {}
    if experiment.lora is not None:
        params, frozen = split(params, FACTORS)
        frozen = {path: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding) for path, x in frozen.items()}
    compute = Compute(
        dtype=jnp.dtype(experiment.precision),
        attend=attend_for(
            experiment.attention,
            experiment.spread,
            heads=model.config.num_attention_heads,
            mesh=mesh,
            rules=TRAINING_RULES,
            backward=True,
        ),
        scan=Scan(remat=experiment.remat),
        constrain=constrain(mesh, TRAINING_RULES),
    )
    objective = flow_objective(Network(model), experiment.flow_loss, compute)
    state = state_of(params, experiment, mesh)
    step = make_step(objective, experiment.optimiser, steps=experiment.steps, seed=experiment.seed, like=state)
    return step, state, frozen, flow_inputs(experiment, mesh, rows)


def vae_step(experiment: Experiment, mesh: Any, rows: int) -> tuple[Any, TrainState, Any, PictureBatch]:
    """The step of the preset of the RGBA-VAE, without LPIPS, with its arguments."""
    model, (side,) = network(experiment.stage.component), experiment.data.loader.buckets.resolutions
    params = arrays(model, mesh, jnp.float32)
    dtype = jnp.dtype(experiment.precision)
    loss = dataclasses.replace(experiment.vae_loss, reference_kl=0.0, perceptual=0.0)
    objective = vae_objective(Network(model), loss, dtype=dtype, reference=None, perceptual_loss=None)
    state = state_of(params, experiment, mesh)
    step = make_step(objective, experiment.optimiser, steps=experiment.steps, seed=experiment.seed, like=state)
    where = lambda n: NamedSharding(mesh, TRAINING_RULES.spec((Axis.BATCH, *(None,) * (n - 1))))
    batch = PictureBatch(
        pixels=jax.ShapeDtypeStruct((rows, side, side, 4), jnp.uint8, sharding=where(4)),
        weights=jax.ShapeDtypeStruct((rows,), jnp.float32, sharding=where(1)),
        rows=jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=where(1)),
    )
    return step, state, {}, batch


def traced(name: str) -> dict[str, Any]:
    """Numbers of the step of a preset. No array of a parameter's size may come into being."""
    experiment = preset(name)
    vae = experiment.stage is Stage.RGBA_VAE
    mesh = make_mesh(MeshShape.parse("data=8" if vae else "fsdp=4,tensor=2"))
    step, state, frozen, batch = (vae_step if vae else flow_step)(experiment, mesh, rows=ROWS)
    after, metrics = jax.eval_shape(step, state, frozen, batch)
    shapes = lambda tree: [(x.shape, str(x.dtype)) for x in jax.tree.leaves(tree)]
    large = [x for x in jax.tree.leaves((state, frozen)) if x.size > 2**20]
    return {
        "trained": sum(x.size for x in state.params.values()),
        "frozen": sum(x.size for x in frozen.values()),
        "state is kept": shapes(after) == shapes(state),
        "rows of losses": metrics.losses.rows.shape[0],
        "whole large arrays": sum(x.sharding.is_fully_replicated for x in large),
        "largest array in memory": max((x.size for x in jax.live_arrays()), default=0),
    }


if __name__ == "__main__":
    print(json.dumps({name: traced(name) for name in SLICES}))
