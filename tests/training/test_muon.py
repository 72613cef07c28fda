"""Muon: which parameters it changes and how, where its state lies, on eight devices and after an interruption."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from reference import error
from runs import QuickRuns, World, assert_same_bits, config_of, mean_square, saved
from test_checkpoints import go

from qil_jax.mesh import TRAINING_RULES, MeshShape, Sharding, make_mesh, shardings, single_device_mesh
from qil_jax.models.paths import slashed
from qil_jax.models.vld_mmdit import MMDiTConfig, VLDMMDiT
from qil_jax.training.batches import PictureBatch
from qil_jax.training.config_file import load_experiment
from qil_jax.training.experiment import ExperimentError
from qil_jax.training.loop import RunStatus
from qil_jax.training.muon import KERNELS, scale_by_muon
from qil_jax.training.optimiser import OptimiserConfig, OptimiserKind, make_optimiser
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.step import TrainState, fresh_state, make_step, state_shardings

SMALL = MMDiTConfig(
    num_layers=3,
    num_attention_heads=2,
    attention_head_dim=8,
    joint_attention_dim=16,
    in_channels=4,
    out_channels=1,
    axes_dims_rope=(4, 2, 2),
    use_additional_t_cond=True,
    use_layer3d_rope=True,
)
MUON = OptimiserConfig(
    kind=OptimiserKind.MUON, learning_rate=2e-3, adamw_learning_rate=8e-4, weight_decay=0.1, clip_norm=1e9
)
RATES = {"optimiser.kind": "muon", "optimiser.learning_rate": 2e-3, "optimiser.adamw_learning_rate": 8e-4}


SOME = ("q/kernel", "out/kernel", "mlp_in/kernel", "mlp_out/kernel", "q/bias", "q_norm/scale")
SOME = tuple(f"backbone/blocks/image/{name}" for name in SOME)
SOME += ("modulation/image/kernel", "modulation/addition/embedding", "backbone/image_in/kernel")
"""Parameters of every kind, of one stream."""


@pytest.fixture(scope="module")
def model() -> VLDMMDiT:
    """A small transformer without values."""
    return nnx.eval_shape(lambda: VLDMMDiT(SMALL, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def shapes(model) -> dict[str, tuple[int, ...]]:
    """Of all its parameters."""
    return {slashed(path): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def normal(shapes: dict[str, tuple[int, ...]], seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Random values of the parameters `SOME`."""
    random = np.random.default_rng(seed)
    return {path: (scale * random.standard_normal(shapes[path])).astype(np.float32) for path in SOME}


def updates_of(optimiser: optax.GradientTransformation, params: Any, gradients: list[Any]) -> list[Any]:
    """The updates of successive gradients, with the parameters as they are."""
    state, found, update = optimiser.init(params), [], jax.jit(optimiser.update)
    for given in gradients:
        updates, state = update(given, state, params)
        found.append(jax.device_get(updates))
    return found


def test_muon_changes_the_matrices_of_blocks(shapes):
    matrices = {path for path, shape in shapes.items() if path.startswith("backbone/blocks/") and len(shape) == 3}
    assert matrices == KERNELS and len(shapes) > 2 * len(KERNELS)


@pytest.mark.full
def test_every_parameter_has_its_rule(shapes):
    """Kernels of blocks have optax's Muon of each matrix by itself, all others AdamW with a rate of its own."""
    params, gradients = normal(shapes, 0, 0.05), [normal(shapes, seed) for seed in (1, 2)]
    found = updates_of(make_optimiser(MUON, 9), params, gradients)
    alone = OptimiserConfig(learning_rate=8e-4, weight_decay=0.1, clip_norm=1e9)
    adamw = updates_of(make_optimiser(alone, 9), params, gradients)
    matrices = lambda tree: {(path, i): x for path in SOME if path in KERNELS for i, x in enumerate(tree[path])}
    by_hand = optax.contrib.muon(2e-3, weight_decay=0.1, consistent_rms=0.2)
    muon = updates_of(by_hand, matrices(params), [matrices(gradient) for gradient in gradients])
    for step in range(2):
        for path in {*SOME} - KERNELS:
            assert np.array_equal(found[step][path], adamw[step][path]), path
        for (path, block), wanted in muon[step].items():
            assert error(found[step][path][block], wanted) <= 2e-5, path


def test_updates_are_nearly_orthogonal_and_as_large_as_those_of_adamw(shapes):
    zeros = {path: np.zeros_like(x) for path, x in normal(shapes, 0).items()}
    (found,) = updates_of(make_optimiser(MUON, 9), zeros, [normal(shapes, 0)])
    for path in KERNELS & {*SOME}:
        values = np.linalg.svd(found[path] / 2e-3, compute_uv=False) / (0.2 * max(shapes[path][-2:]) ** 0.5)
        assert values.min() > 0.3 and values.max() < 1.3, path  # five iterations: mostly 0.7 to 1.2
        assert 0.1 < np.sqrt(np.mean(np.square(found[path]))) / 2e-3 < 0.3, path


MESHES = ["fsdp=8", "tensor=2,fsdp=4", "context=2,data=4"]


def on(mesh: Any, model: VLDMMDiT, params: dict[str, Any]) -> tuple[TrainState, jax.stages.Wrapped, PictureBatch]:
    """The first state and the step of a loss that compiles at once, and its batch."""
    where = shardings(model, Sharding(mesh, TRAINING_RULES))
    state = fresh_state({path: jax.device_put(x, where[path]) for path, x in params.items()}, MUON, 9)
    step = make_step(mean_square(), MUON, steps=9, seed=0, like=state)
    return state, step, PictureBatch(pixels=jnp.zeros((8, 2, 2, 4), jnp.uint8), weights=jnp.ones(8), rows=jnp.arange(8))


@pytest.fixture(scope="module")
def alone(model, shapes) -> dict[str, np.ndarray]:
    """Parameters after three steps on one device."""
    state, step, batch = on(single_device_mesh(), model, normal(shapes, 0, 0.05))
    for _ in range(3):
        state, _ = step(state, {}, batch)
    return jax.device_get(state.params)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.full
def test_devices_change_nothing_and_state_lies_with_the_parameters(model, shapes, alone, mesh):
    """Three blocks are orthogonalised by eight devices, one each at most."""
    state, step, batch = on(make_mesh(MeshShape.parse(mesh)), model, normal(shapes, 0, 0.05))
    assert not any(state.params[path].sharding.is_fully_replicated for path in KERNELS & {*SOME})
    state, _ = step(state, {}, batch)
    moments = dict.fromkeys(SOME, 0)
    for path, leaf in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]:
        if isinstance(path[-1], jax.tree_util.DictKey):
            moments[path[-1].key] += 1
            assert leaf.sharding == state.params[path[-1].key].sharding, path
        else:
            assert leaf.sharding.is_fully_replicated
    assert moments == {path: 1 if path in KERNELS else 2 for path in SOME}
    for _ in range(2):
        state, _ = step(state, {}, batch)
    for path, value in alone.items():
        assert error(state.params[path], value) <= 2e-5, path


@pytest.mark.parametrize("mesh", ["fsdp=8", "tensor=2,fsdp=4"])
def test_no_matrix_is_gathered(model, shapes, mesh):
    """Blocks move between devices, there and back; each matrix is on one device only."""
    where = shardings(model, Sharding(make_mesh(MeshShape.parse(mesh)), TRAINING_RULES))
    paths = [path for path in SOME if path in KERNELS]
    kernels = {path: jax.ShapeDtypeStruct(shapes[path], jnp.float32, sharding=where[path]) for path in paths}
    optimiser = scale_by_muon(where)
    state = jax.eval_shape(optimiser.init, kernels)
    laid = lambda leaf, like: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=like)
    state = jax.tree.map(laid, state, state_shardings(state, kernels))
    program = jax.jit(optimiser.update).lower(kernels, state).compile().as_text()
    assert "all-to-all" in program and "all-gather" not in program


def test_a_run_that_was_cut_ends_with_the_same_bits(world: World, quick: QuickRuns, tmp_path):
    """And it goes on with no other optimiser."""
    changes = RATES | {"trainable": "blocks/image", "steps": 4}
    experiment = world.experiment(Stage.TEXT_TO_RGBA, changes)
    uncut, cut = tmp_path / "uncut", tmp_path / "cut"
    assert go(experiment, uncut) is RunStatus.FINISHED
    assert go(experiment, cut, until=2) is RunStatus.STOPPED
    adamw = world.experiment(Stage.TEXT_TO_RGBA, {"trainable": "blocks/image", "steps": 4})
    with pytest.raises(ExperimentError, match=r"run with other settings \(optimiser differ"):
        go(adamw, cut)
    assert go(experiment, cut) is RunStatus.FINISHED
    assert_same_bits(saved(cut, 4), saved(uncut, 4))


@pytest.mark.parametrize(
    ("stage", "overrides", "says"),
    [
        (Stage.RGBA_VAE, (), "rgba_vae trains the VAE, which has no such kernels: set optimiser.kind=adamw"),
        (Stage.IMAGE_TO_LAYERS, ("lora.rank=4",), "lora freezes them, .*: set optimiser.kind=adamw"),
        (
            Stage.IMAGE_TO_LAYERS,
            ("trainable=image_out",),
            "trainable 'image_out' fits none of them, such as backbone/blocks/image/k/kernel: set optimiser.kind=adamw",
        ),
        (Stage.IMAGE_TO_LAYERS, ("trainable=*",), "trainable '.' is no regular expression"),
        (Stage.IMAGE_TO_LAYERS, ("optimiser.adamw_learning_rate=0",), "adamw_learning_rate 0.0 must be above 0"),
        (Stage.IMAGE_TO_LAYERS, ("optimiser.adamw_learning_rate=inf",), "adamw_learning_rate inf must be .* finite"),
        (Stage.IMAGE_TO_LAYERS, ("optimiser.kind=lion",), "'lion' is not valid: input should be 'adamw' or 'muon'"),
    ],
)
def test_muon_is_refused_in_words(stage, overrides, says):
    with pytest.raises(ExperimentError, match=says):
        load_experiment(config_of(stage), ["optimiser.kind=muon", *overrides])


def test_adamw_has_one_learning_rate():
    with pytest.raises(ExperimentError, match="and kind is adamw: set learning_rate alone, or kind=muon"):
        load_experiment(config_of(Stage.IMAGE_TO_LAYERS), ["optimiser.adamw_learning_rate=1e-3"])
