"""The presets of the full-size model: sharded as the page says, and their steps traced without any parameter."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from runs import World

import train
from qil_jax.mesh import TRAINING_RULES, MeshShape, constrain, make_mesh, shardings
from qil_jax.models.axes import Axis
from qil_jax.models.paths import slashed
from qil_jax.models.stack import Scan
from qil_jax.models.vld_mmdit import TokenLayout
from qil_jax.programs import ended
from qil_jax.training.batches import FlowBatch, PictureBatch
from qil_jax.training.experiment import Experiment, Precision
from qil_jax.training.lora import FACTORS
from qil_jax.training.objectives import Compute, flow_objective, vae_objective
from qil_jax.training.optimiser import make_optimiser
from qil_jax.training.parameters import Network
from qil_jax.training.setup import split
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.step import TrainState, make_step, state_shardings
from tools import write_presets
from tools.write_presets import SLICES, abstract_mesh, network, preset

TRANSFORMER = 20_430_407_232
"""Parameters of the layered release's transformer (docs/specification.md, 4)."""
EIGHT = {"rgba_vae": "data=8"}
"""The mesh of eight devices on which a preset is traced; fsdp=4,tensor=2 for all others."""


def test_the_page_holds_the_tables_of_the_presets():
    assert ended(write_presets.main, ["--check"]) == 0


@pytest.mark.parametrize("name", SLICES)
def test_a_preset_divides_over_its_slice(name):
    """The mesh holds the slice's chips, and all parameters, rows and microbatches divide over it."""
    experiment = preset(name)
    kind, _, cores = SLICES[name].rpartition("-")
    assert experiment.mesh.devices == int(cores) // (2 if kind == "v5p" else 1)
    mesh = abstract_mesh(experiment.mesh)
    shardings(network(experiment.stage.component), mesh, TRAINING_RULES)
    rows = experiment.data.loader.rows
    assert rows // experiment.optimiser.accumulate % TRAINING_RULES.ways(Axis.BATCH, mesh) == 0
    assert experiment.precision is Precision.BF16


def arrays(model: nnx.Module, mesh: Any, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters of a model by path: shapes and shardings without values."""
    placed = shardings(model, mesh, TRAINING_RULES)
    found = {slashed(path): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    return {path: jax.ShapeDtypeStruct(shape, dtype, sharding=placed[path]) for path, shape in found.items()}


def state_of(params: dict[str, Any], experiment: Experiment, mesh: Any) -> TrainState:
    """A training state without values."""
    moments = jax.eval_shape(make_optimiser(experiment.optimiser, experiment.steps).init, params)
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        moments,
        state_shardings(moments, params),
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
    model = write_presets.trained_network(experiment)
    params, frozen = arrays(model, mesh, jnp.float32), {}
    if experiment.lora is not None:
        params, frozen = split(params, FACTORS)
        frozen = {path: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding) for path, x in frozen.items()}
    compute = Compute(
        dtype=jnp.dtype(experiment.precision),
        kind=experiment.attention,
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


@pytest.mark.parametrize("name", SLICES)
def test_the_step_at_full_size_is_traced(name):
    """No parameter is allocated: the result has the state's shapes, and every array of it is split as the state was."""
    experiment = preset(name)
    mesh = make_mesh(MeshShape.parse(EIGHT.get(name, "fsdp=4,tensor=2")))
    build = vae_step if experiment.stage is Stage.RGBA_VAE else flow_step
    step, state, frozen, batch = build(experiment, mesh, rows=8)
    before = {id(x) for x in jax.live_arrays()}
    after, metrics = jax.eval_shape(step, state, frozen, batch)
    assert {id(x) for x in jax.live_arrays()} <= before
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(after) == shapes(state)
    assert metrics.loss.shape == () and metrics.losses.rows.shape == (8,)
    if experiment.stage is not Stage.RGBA_VAE:
        trained = sum(x.size for path, x in state.params.items())
        kept = trained if experiment.lora is None else sum(x.size for x in frozen.values())
        assert kept == TRANSFORMER and (experiment.lora is None or trained < TRANSFORMER / 50)
    large = [x for x in jax.tree.leaves((state.params, frozen)) if x.size > 2**20]
    assert all(not x.sharding.is_fully_replicated for x in large) or experiment.stage is Stage.RGBA_VAE


@pytest.mark.parametrize("name", SLICES)
def test_check_of_a_tiny_checkpoint_of_the_same_structure(world: World, tmp_path, capsys, name):
    """train.py --check on eight devices, through the program: only sizes, folders and the mesh are changed."""
    vae = name == "rgba_vae"
    values = {
        "start.checkpoint": world.base,
        "start.vae": "none",
        "data.sources": f'["{world.scenes}"]',
        "data.inputs": "pictures",
        "data.workers.processes": 0,
        "data.loader.rows": 8,
        "data.loader.buckets.resolutions": "[32]",
        "data.loader.buckets.row_tokens": 4 if vae else 48,
        "data.text_tokens": 16,
        "validation.every": 0,
        **({"mesh.data": 8} if vae else {"mesh.fsdp": 4, "mesh.tensor": 2}),
    }
    run = tmp_path / "run"
    sets = [word for setting, value in values.items() for word in ("--set", f"{setting}={value}")]
    config = write_presets.ROOT / "configs" / "released" / f"{name}.py"
    assert train.main([str(config), "--check", "--out", str(run), *sets]) == 0
    said = capsys.readouterr().out
    assert "trained: " in said and "memory of the step, a device: " in said and not run.exists()
