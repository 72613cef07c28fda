"""What a step does when numbers go bad, and what a run says then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import World

from qil_jax.mesh import single_device_mesh
from qil_jax.training.batches import PictureBatch
from qil_jax.training.loop import TrainingError, train
from qil_jax.training.objectives import LossMetrics
from qil_jax.training.optimiser import LRSchedule, OptimiserConfig, learning_rate
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.step import fresh_state, make_step


def mean_of_pixels(params, frozen, batch, key):
    """A loss whose gradient is known: scale times the weighted mean of the pixels; 255 everywhere spoils it."""
    rows = params["scale"] * jnp.mean(batch.pixels.astype(jnp.float32), axis=(1, 2, 3))
    rows = jnp.where(jnp.all(batch.pixels == 255, axis=(1, 2, 3)), jnp.nan, rows)
    return jnp.sum(rows * batch.weights), LossMetrics(sums={}, rows=rows)


def picture_batch(values) -> PictureBatch:
    pixels = np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), 2, 2, 4))
    return PictureBatch(pixels=jnp.asarray(pixels), weights=jnp.ones(len(values)), rows=jnp.arange(len(values)))


def test_bad_steps_change_nothing_but_the_counters():
    mesh = single_device_mesh()
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    config = OptimiserConfig(learning_rate=0.5, ema_decay=0.5)
    state = fresh_state({"scale": jax.device_put(jnp.float32(3.0), whole)}, config, steps=9)
    step = make_step(mean_of_pixels, config, steps=9, seed=0, like=state)
    state, metrics = step(state, {}, picture_batch([4, 8]))
    assert (float(metrics.loss), float(metrics.gradient_norm)) == (18.0, 6.0)
    assert float(state.params["scale"]) == pytest.approx(2.5, abs=1e-5)  # Adam's first step is the learning rate
    before = jax.device_get((state.params, state.ema_params, state.opt_state))
    for failing in (1, 2):
        state, metrics = step(state, {}, picture_batch([4, 255]))
        assert (bool(metrics.finite), int(metrics.failing)) == (False, failing)
        assert np.flatnonzero(~np.isfinite(metrics.losses.rows)).tolist() == [1]
    for a, b in zip(
        jax.tree.leaves(before), jax.tree.leaves((state.params, state.ema_params, state.opt_state)), strict=True
    ):
        assert np.array_equal(a, b)
    state, metrics = step(state, {}, picture_batch([4, 8]))
    assert (int(state.step), int(state.skipped), int(state.failing)) == (4, 2, 0)
    assert float(state.params["scale"]) < 2.1


def test_schedules_of_the_learning_rate():
    rate = learning_rate(
        OptimiserConfig(learning_rate=1.0, schedule=LRSchedule.COSINE, warmup_steps=4, final_fraction=0.1), 24
    )
    assert [float(rate(i)) for i in (0, 3, 4, 14, 24)] == pytest.approx([0.25, 0.8125, 1.0, 0.55, 0.1])
    flat = learning_rate(OptimiserConfig(learning_rate=0.3), 5)
    assert [float(flat(i)) for i in (0, 5)] == pytest.approx([0.3, 0.3])


@pytest.mark.full
def test_a_run_gives_up_and_names_the_records(world: World, tmp_path):
    """A learning rate beyond all reason breaks a run."""
    changes = {"optimiser.learning_rate": 1000, "optimiser.warmup_steps": 0, "optimiser.clip_norm": 1e9, "give_up": 2}
    experiment = world.experiment(Stage.IMAGE_TO_LAYERS, changes | {"steps": 30, "checkpoints.every": 1})
    lines = []
    with pytest.raises(TrainingError, match=r"2 steps in a row gave no finite loss.*train\[\d+\]"):
        train(
            experiment,
            tmp_path / "run",
            single_device_mesh(),
            stop=lambda step: False,
            show=lambda step, line: lines.append(line),
        )
    assert sum("not_finite" in line for line in lines) == 2
