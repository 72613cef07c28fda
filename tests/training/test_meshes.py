"""Losses, gradients and ten steps on meshes of eight devices are those of one device, with mixed layer counts."""

import jax
import numpy as np
import pytest
from reference import error, mean_error
from runs import World

from qil_jax.mesh import MeshShape, make_mesh, single_device_mesh
from qil_jax.models.stack import Remat
from qil_jax.training.batches import FlowBatch
from qil_jax.training.experiment import Precision
from qil_jax.training.setup import TrainingRun, prepare
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.step import StepFunction, TrainState, fresh_state, make_step

pytestmark = pytest.mark.full

STEPS = 10
SETTINGS = {"data.loader.rows": 8, "optimiser.epsilon": 1e-4, "steps": STEPS}
MORE = ["fsdp=8", "tensor=2,fsdp=4", "context=2,data=4"]
MESHES = ["context=2,fsdp=2,tensor=2", *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in MORE)]


class Run:
    """A run by hand: gradients by themselves, and steps. What is not called is not compiled."""

    def __init__(self, world: World, shape: MeshShape | None, **changes):
        mesh = single_device_mesh() if shape is None else make_mesh(shape)
        experiment = world.experiment(Stage.IMAGE_TO_LAYERS, SETTINGS | changes)
        self.prepared: TrainingRun = prepare(experiment, mesh)
        self.state: TrainState = fresh_state(self.prepared.params, experiment.optimiser, STEPS)
        objective = self.prepared.stage.objective
        self.step: StepFunction = make_step(
            objective, experiment.optimiser, steps=STEPS, seed=experiment.seed, like=self.state
        )
        self.differentiate = jax.jit(jax.value_and_grad(lambda *given: objective(*given)[0]))

    def batch(self) -> tuple[FlowBatch, int]:
        """The next batch, and how many counts of pictures its rows' samples have."""
        batch = next(self.prepared.loader)
        counts = {tuple(np.bincount(row[row > 0]).tolist()) for row in batch.segments}
        return self.prepared.stage.inputs(batch), len(counts)

    def gradients(self, inputs: FlowBatch) -> tuple[float, dict[str, np.ndarray]]:
        """The objective of a batch and its gradients."""
        loss, gradients = self.differentiate(self.state.params, self.prepared.frozen, inputs, jax.random.key(0))
        return float(loss), jax.device_get(gradients)

    def take(self, inputs: FlowBatch) -> float:
        """The loss of a step."""
        self.state, metrics = self.step(self.state, self.prepared.frozen, inputs)
        return float(metrics.loss)

    def losses(self, count: int) -> list[float]:
        """Of so many steps, the last ones."""
        with self.prepared.loader:
            return [self.take(self.batch()[0]) for _ in range(count)]


@pytest.fixture(scope="module")
def alone(world):
    """The objective, its gradients and the step's loss of each batch, and the parameters at the end."""
    run, found, most = Run(world, None), [], 0
    for _ in range(STEPS):
        inputs, mixed = run.batch()
        found.append((*run.gradients(inputs), run.take(inputs)))
        most = max(most, mixed)
    assert most > 2
    run.prepared.loader.close()
    return found, jax.device_get(run.state.params)


@pytest.mark.parametrize("mesh", MESHES)
def test_meshes(world, alone, mesh):
    run = Run(world, MeshShape.parse(mesh))
    wanted, params = alone
    for _, gradients, loss in wanted:
        inputs, _ = run.batch()
        _, found = run.gradients(inputs)
        assert abs(run.take(inputs) - loss) <= 2e-5 * abs(loss)
        for path, value in gradients.items():
            assert error(found[path], value) <= 2e-5, path
    run.prepared.loader.close()
    for path, value in params.items():
        assert error(run.state.params[path], value) <= 2e-5, path
    sharded = [x for x in jax.tree.leaves(run.state.opt_state) if not x.sharding.is_fully_replicated]
    assert sharded  # the optimiser state lies where its parameters do, which context splits too


@pytest.fixture(scope="module")
def in_bf16(world, alone):
    """How far one device's gradients of the first batch are from those in fp32, relative, by path."""
    run = Run(world, None, precision=Precision.BF16)
    _, found = run.gradients(run.batch()[0])
    run.prepared.loader.close()
    return far(found, alone[0][0][1])


def far(found: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> float:
    """The mean over all parameters of their gradient's mean error, relative to its size."""
    return float(np.mean([mean_error(found[path], x) / np.abs(x).mean() for path, x in exact.items() if x.any()]))


@pytest.mark.parametrize("mesh", MESHES)
def test_meshes_in_bf16(world, alone, in_bf16, mesh):
    """Devices change the order of roundings, but not how much is lost by them."""
    run = Run(world, MeshShape.parse(mesh), precision=Precision.BF16)
    loss, found = run.gradients(run.batch()[0])
    run.prepared.loader.close()
    exact_loss, exact, _ = alone[0][0]
    assert abs(loss - exact_loss) <= 0.01 * exact_loss
    assert 0 < far(found, exact) <= 1.2 * in_bf16


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser.accumulate": 4},
        {"remat": Remat.BLOCK},
        pytest.param({"remat": Remat.DOTS}, marks=pytest.mark.slow),
        {"unroll": True},
    ],
)
def test_accumulation_remat_and_unrolling_change_nothing(world, alone, changes):
    run = Run(world, None, **changes)
    wanted, params = alone
    for found, (*_, loss) in zip(run.losses(STEPS), wanted, strict=True):
        assert abs(found - loss) <= 2e-5 * abs(loss)
    for path, value in params.items():
        assert error(run.state.params[path], value) <= 2e-5, path
