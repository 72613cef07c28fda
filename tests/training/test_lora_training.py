"""Training of low-rank changes: what a step computes, what it leaves alone, and the file at the end."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import error
from runs import World, saved
from test_meshes import Run

from qil_jax.cli import convert, validate
from qil_jax.mesh import TRAINING_RULES, MeshShape, Sharding, make_mesh, single_device_mesh
from qil_jax.models.stack import Scan
from qil_jax.programs import ended
from qil_jax.training import loop
from qil_jax.training.batches import FlowBatch
from qil_jax.training.experiment import ExperimentError, Precision
from qil_jax.training.finish import export_run, result_of
from qil_jax.training.lora import FACTORS, LoRAConfig, initial_factors, with_dropout
from qil_jax.training.objectives import Compute, Objective, flow_objective
from qil_jax.training.optimiser import OptimiserConfig, make_optimiser
from qil_jax.training.parameters import Params, params_of, training_network
from qil_jax.training.setup import TrainingRun, prepare
from qil_jax.training.stages.flow import FlowStage
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.start import LORA_FILE
from qil_jax.training.step import fresh_state, make_step
from qil_jax.weights import Checkpoint, Component
from qil_jax.weights.lora import read_lora

pytestmark = pytest.mark.full

RANK, ALPHA = 4, 6.0
LORA = {"lora.rank": RANK, "lora.alpha": ALPHA, "optimiser.learning_rate": 1e-2}
KEY = jax.random.key(5)
MAPS = {
    *(f"backbone/blocks/{side}/{part}" for side in ("image", "text") for part in ("q", "k", "v", "out", "mlp_out")),
    *(f"modulation/{side}" for side in ("image", "text")),
}
"""What DiffSynth-Studio changes, by our paths."""


def merged(base: Params, factors: Params) -> Params:
    """The parameters with the changes in the kernels."""
    kernels = {
        f"{path}/kernel": base[f"{path}/kernel"]
        + ALPHA / RANK * jnp.einsum("kir,kro->kio", factors[f"{path}/lora/a"], factors[f"{path}/lora/b"])
        for path in MAPS
    }
    return base | kernels


def with_random_b(factors: Params) -> Params:
    """The factors with values in b, as after some steps."""
    draw = lambda i, x: 0.1 * jax.random.normal(jax.random.key(i), x.shape)
    return {path: draw(i, x) if path.endswith("/b") else x for i, (path, x) in enumerate(factors.items())}


def base_of(world: World) -> tuple[Objective, Params, Any]:
    """The stage's loss by a network without low-rank changes, the parameters of the checkpoint, and the network."""
    sharding = Sharding(single_device_mesh(), TRAINING_RULES)
    model = Checkpoint(world.base).load(Component.TRANSFORMER, sharding, dtype=jnp.float32)
    network = training_network(model)
    loss = world.experiment(Stage.IMAGE_TO_LAYERS, {}).flow_loss
    return flow_objective(network, loss, Compute(scan=Scan(unroll=True))), params_of(model), network


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """A prepared run in fp32, its first batch, and the same loss without low-rank changes.

    Attributes:
      run: prepared run.
      inputs: first batch, as the step normalises it.
      objective: loss of all parameters.
      base: parameters of the checkpoint.
      network: network without low-rank changes.
    """

    run: TrainingRun
    inputs: FlowBatch
    objective: Objective
    base: Params
    network: Any


@pytest.fixture(scope="module")
def given(world: World) -> Given:
    experiment = world.experiment(Stage.IMAGE_TO_LAYERS, LORA)
    run = prepare(experiment, single_device_mesh())
    inputs = run.stage.inputs(next(run.loader))
    run.loader.close()
    inputs = dataclasses.replace(inputs, weights=inputs.weights / jnp.sum(inputs.weights))
    objective, base, network = base_of(world)
    return Given(run=run, inputs=inputs, objective=objective, base=base, network=network)


def test_the_factors_are_trained_and_the_base_is_frozen(given):
    assert set(given.run.params) == {f"{path}/lora/{factor}" for path in MAPS for factor in "ab"}
    assert given.run.frozen.keys() == given.base.keys()
    for path, a in given.run.params.items():
        assert a.dtype == jnp.float32
        if path.endswith("/b"):
            assert not np.any(a)
        else:
            bound = a.shape[-2] ** -0.5
            assert 0.95 * bound < np.abs(a).max() <= bound and abs(np.std(a) * 3**0.5 / bound - 1) < 0.1


def test_the_first_loss_is_that_of_the_base(given):
    found, _ = jax.jit(given.run.stage.objective)(given.run.params, given.run.frozen, given.inputs, KEY)
    wanted, _ = jax.jit(given.objective)(given.base, {}, given.inputs, KEY)
    assert abs(found - wanted) <= 1e-6 * wanted


def test_gradients_are_those_of_the_merged_kernels(given):
    factors = with_random_b(given.run.params)
    by_hand = lambda factors: given.objective(merged(given.base, factors), {}, given.inputs, KEY)[0]
    loss, wanted = jax.jit(jax.value_and_grad(by_hand))(factors)
    ours = jax.jit(jax.value_and_grad(lambda f: given.run.stage.objective(f, given.run.frozen, given.inputs, KEY)[0]))
    found_loss, found = ours(factors)
    assert abs(found_loss - loss) <= 1e-6 * loss
    untouched = given.objective(given.base, {}, given.inputs, KEY)[0]
    assert abs(untouched - loss) > 1e-3 * loss, "the changes change nothing"
    for path, value in wanted.items():
        assert error(found[path], value) <= 2e-5, path


def test_gradients_of_the_frozen_kernels_are_not_computed(given):
    """A third of a step's products gives gradients of kernels."""
    objective, base, factors = given.run.stage.objective, given.run.frozen, given.run.params
    flops = lambda loss, *args: jax.jit(jax.grad(loss)).lower(*args).compile().cost_analysis()["flops"]
    lora = flops(lambda p: objective(p, base, given.inputs, KEY)[0], factors)
    whole = flops(lambda p: given.objective(p, {}, given.inputs, KEY)[0], base)
    both = flops(lambda p: objective(p, {}, given.inputs, KEY)[0], base | factors)
    assert lora < 0.8 * whole and lora < 0.75 * both


@pytest.fixture(scope="module")
def alone(world):
    run = Run(world, None, **LORA, **{"lora.dropout": 0.25})
    return run.losses(6), jax.device_get(run.state.params)


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        ("context=2,fsdp=2,tensor=2", {"optimiser.accumulate": 2}),
        pytest.param("", {"remat": "block", "unroll": True}, marks=pytest.mark.slow),
        pytest.param("", {"optimiser.accumulate": 4}, marks=pytest.mark.slow),
        pytest.param("fsdp=4,tensor=2", {"optimiser.accumulate": 2}, marks=pytest.mark.slow),
        pytest.param("context=2,data=4", {}, marks=pytest.mark.slow),
    ],
)
def test_meshes_and_accumulation_change_nothing(world, alone, mesh, changes):
    run = Run(world, MeshShape.parse(mesh) if mesh else None, **LORA, **{"lora.dropout": 0.25}, **changes)
    wanted, params = alone
    for found, loss in zip(run.losses(len(wanted)), wanted, strict=True):
        assert abs(found - loss) <= 2e-5 * loss
    for path, value in params.items():
        assert error(run.state.params[path], value) <= 2e-5, path


def test_initial_factors_depend_on_seed_and_path_alone(world, given):
    model = Checkpoint(world.base).abstract(Component.TRANSFORMER)
    LoRAConfig(rank=RANK, alpha=ALPHA).add_to(model)
    sharding = Sharding(make_mesh(MeshShape(fsdp=4, tensor=2)), TRAINING_RULES)
    seed = given.run.experiment.seed
    spread, other = (initial_factors(model, sharding, s) for s in (seed, seed + 1))
    alone = prepare(given.run.experiment, single_device_mesh()).params
    assert spread.keys() == alone.keys()
    for path, value in alone.items():
        assert np.array_equal(spread[path], value), path
        assert path.endswith("/b") or not np.any(np.asarray(other[path]) == np.asarray(value))
    sides = [np.asarray(alone[f"modulation/{side}/lora/a"]) for side in ("image", "text")]
    assert not np.any(sides[0] == sides[1])
    assert not np.any(sides[0][0] == sides[0][1]), "blocks begin alike"


def test_dropout_omits_whole_features_and_keeps_the_mean(given):
    rate, count = 0.3, 4000
    path, other = "backbone/blocks/image/q/lora/a", "backbone/blocks/image/k/lora/a"
    params = {name: given.run.params[name] for name in (path, other)} | {"x/lora/b": jnp.ones((2, 3, 4))}
    draws = jax.jit(jax.vmap(lambda key: with_dropout(params, key, rate)))(jax.random.split(KEY, count))
    assert np.all(np.asarray(draws["x/lora/b"]) == 1)
    a = np.asarray(params[path])
    kept = np.asarray(draws[path]) != 0
    assert np.array_equal(kept, np.broadcast_to(kept[..., :1], kept.shape)), "features are omitted in part"
    assert np.array_equal(np.asarray(draws[path]), np.where(kept, (a / np.float32(1 - rate)), 0))
    assert abs(kept.mean() - (1 - rate)) < 0.005
    assert abs(np.mean(kept == (np.asarray(draws[other]) != 0)) - (rate**2 + (1 - rate) ** 2)) < 0.01
    deviation = np.abs(a) * (rate / (1 - rate) / count) ** 0.5
    assert np.all(np.abs(np.asarray(draws[path], np.float64).mean(0) - a) <= 6 * deviation)


def test_dropout_acts_in_steps_alone(given):
    """The loss of a step differs by it, the stage's own loss, which validation uses, does not know it."""
    factors, optimiser = with_random_b(given.run.params), OptimiserConfig()
    losses = {}
    for rate in (0.0, 0.5):
        state = fresh_state(jax.tree.map(jnp.copy, factors), optimiser, 9)
        step = make_step(given.run.stage.objective, optimiser, steps=9, seed=0, like=state, dropout=rate)
        losses[rate] = float(step(state, given.run.frozen, given.inputs)[1].loss)
    key = jax.random.fold_in(jax.random.key(0), 0)
    wanted, _ = given.run.stage.objective(factors, given.run.frozen, given.inputs, key)
    assert abs(losses[0.0] - wanted) <= 1e-6 * wanted
    assert abs(losses[0.5] - wanted) > 1e-3 * wanted
    dropped, _ = given.run.stage.objective(with_dropout(factors, key, 0.5), given.run.frozen, given.inputs, key)
    assert abs(losses[0.5] - dropped) <= 1e-6 * dropped


def test_weight_decay_shrinks_both_factors():
    factors = {"q/lora/a": jnp.ones((2, 3)), "q/lora/b": jnp.ones((3, 2)), "q/bias": jnp.ones(2)}
    optimiser = make_optimiser(OptimiserConfig(learning_rate=0.5, weight_decay=0.1), 3)
    updates, _ = optimiser.update(jax.tree.map(jnp.zeros_like, factors), optimiser.init(factors), factors)
    assert {path: float(x.ravel()[0]) for path, x in updates.items()} == pytest.approx(
        {"q/lora/a": -0.05, "q/lora/b": -0.05, "q/bias": 0.0}
    )


class Trained:
    """A run of twenty steps through the loop, and its export."""

    def __init__(self, world: World, folder: Path, precision: Precision):
        changes = LORA | {"steps": 20, "checkpoints.every": 20, "precision": precision, "optimiser.ema_decay": 0.5}
        changes |= {"validation.every": 20, "validation.batches": 1, "validation.samples": 1, "validation.steps": 2}
        experiment = world.experiment(Stage.IMAGE_TO_LAYERS, changes)
        self.folder, self.lines = folder, []
        _, self.state, self.run = loop.train(
            experiment,
            folder,
            single_device_mesh(),
            stop=lambda step: False,
            show=lambda step, line: self.lines.append(line),
        )
        self.file = result_of(experiment, folder) / LORA_FILE
        export_run(self.run, self.state, self.file.parent)
        self.table = Checkpoint(world.base)[Component.TRANSFORMER].table


@pytest.fixture(scope="module", params=[pytest.param(Precision.FP32, marks=pytest.mark.slow), Precision.BF16])
def trained(world: World, tmp_path_factory, request) -> Trained:
    return Trained(world, tmp_path_factory.mktemp("trained") / "run", request.param)


def test_only_the_factors_change(world, trained, given):
    _, base, _ = base_of(world)
    dtype = jnp.dtype(trained.run.experiment.precision)
    assert trained.run.frozen.keys() == base.keys()
    for path, value in trained.run.frozen.items():
        assert value.dtype == dtype
        assert np.array_equal(np.asarray(value), np.asarray(base[path].astype(dtype))), path
    assert all(re.search(FACTORS, path) for path in trained.state.params)
    for path, value in trained.state.params.items():
        assert np.any(np.asarray(value) != np.asarray(given.run.params[path])), path
    kept = saved(trained.folder, 20)
    arrays = [name for name in kept if name.startswith(("/params", "/ema_params"))]
    assert len(arrays) == 2 * 2 * len(MAPS) and all(".lora." in name for name in arrays)
    size = sum(value.nbytes for name, value in kept.items() if name != "/position")
    factors = sum(value.nbytes for value in trained.state.params.values())
    assert factors * 4 <= size < factors * 4 + 100, "parameters, EMA and two moments"
    assert "validation/loss" in {name for line in trained.lines for name in line}
    assert (trained.folder / "samples" / "00000020.png").is_file()


def test_the_exported_file_merged_gives_the_trained_velocity(world, trained, given):
    assert sorted(file.name for file in trained.file.parent.iterdir()) == [trained.file.name, "training.json"]
    assert trained.file == trained.folder / "lora" / "pytorch_lora_weights.safetensors"
    assert json.loads((trained.file.parent / "training.json").read_text()) == {
        "stage": "stage3_image_to_layers",
        "step": 20,
        "ema": True,
    }
    assert not (trained.folder / "checkpoint").exists()
    lora = read_lora(trained.file, trained.table)
    kernels = {entry.name.removesuffix(".weight"): entry for entry in trained.table if entry.path.endswith("/kernel")}
    merged_base = {path: np.array(value) for path, value in given.base.items()}
    assert len(lora.changes) == 2 * len(MAPS)  # two blocks
    for module, change in lora.changes.items():
        entry = kernels[module]
        assert (change.a.shape[1], change.scale) == (RANK, ALPHA / RANK)
        merged_base[entry.path][entry.block] += change.scale * change.a @ change.b
    velocity = jax.jit(lambda network, i: network(i.clean, i.text, i.layout, sigma=SIGMA, target_kind=i.target_kinds))
    assert isinstance(trained.run.stage, FlowStage)
    ours = trained.run.stage.network({**given.base, **trained.state.ema_params})
    theirs = given.network({path: jnp.asarray(value) for path, value in merged_base.items()})
    found, wanted, before = (velocity(n, given.inputs) for n in (ours, theirs, given.network(given.base)))
    assert error(before, wanted) > 1e-3, "twenty steps changed nothing"
    assert error(found, wanted) <= 2e-5


def test_a_checkpoint_of_the_run_is_exported_as_a_file_or_merged(world, trained, given, tmp_path):
    """The file is that of the run's end, and the folder holds the base with that file's changes, rounded once."""
    file, folder = tmp_path / "lora.safetensors", tmp_path / "merged"
    for destination, more in ((file, ["--base", str(world.base)]), (folder, [])):
        assert ended(convert.main, ["export", str(trained.folder), str(destination)]) == 0
        assert ended(validate.main, [str(destination), *more]) == 0
    found, wanted = read_lora(file, trained.table), read_lora(trained.file, trained.table)
    assert found.changes.keys() == wanted.changes.keys() and dict(found.origin) == dict(wanted.origin)
    for module, change in wanted.changes.items():
        assert np.array_equal(found.changes[module].a, change.a) and np.array_equal(found.changes[module].b, change.b)
    sharding = Sharding(single_device_mesh(), TRAINING_RULES)
    kernels = params_of(Checkpoint(folder).load(Component.TRANSFORMER, sharding))
    loaded = Checkpoint(world.base).load(Component.TRANSFORMER, sharding, loras=[(wanted, 1.0)])
    for path, value in params_of(loaded).items():
        assert np.array_equal(kernels[path], value), path
    assert any(not np.array_equal(kernels[path], given.base[path]) for path in kernels)
    assert not list(folder.glob("**/*lora*"))


def test_a_lora_is_trained_further(world, trained):
    """The factors of the file are the first ones of a run with the same settings."""
    go_on = LORA | {"start.lora": trained.file}
    run = prepare(world.experiment(Stage.IMAGE_TO_LAYERS, go_on), single_device_mesh())
    run.loader.close()
    assert run.params.keys() == trained.state.ema_params.keys()
    for path, value in trained.state.ema_params.items():
        assert np.array_equal(run.params[path], value), path
    for changes, says in (
        ({"lora.rank": 8}, r"to_q: has rank 4, but lora.rank is 8"),
        ({"lora.alpha": 3}, r"to_q: has scale 1.5, but lora.alpha / lora.rank is 0.75"),
        ({"lora.targets": "image/q"}, r"to_k: is in the file, but is no target"),
        ({"lora.targets": "."}, r"mlp.net.0.proj: is a target, but is not in the file"),
    ):
        with pytest.raises(ExperimentError, match=says):
            prepare(world.experiment(Stage.IMAGE_TO_LAYERS, go_on | changes), single_device_mesh())


SIGMA = jnp.asarray([0.3, 0.8])
