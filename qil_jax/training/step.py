"""One step of training, compiled: gradients in parts, AdamW, moving average, and nothing at all if a number is bad."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from qil_jax.training.objectives import Objective, Report
from qil_jax.training.optimiser import OptimiserConfig, ema_weight, make_optimiser
from qil_jax.training.parameters import Params, copied


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a step changes.

    Attributes:
      params: what is trained, fp32.
      ema_params: the moving average of it, which is what gets used.
      opt_state: of the optimiser.
      step: steps taken, good or bad.
      skipped: bad ones among them; failing: how many of the last ones in a row.
    """

    params: Params
    ema_params: Params
    opt_state: Any
    step: Int[Array, ""]
    skipped: Int[Array, ""]
    failing: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a step tells. `report` is summed over the parts of the batch."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    update_norm: Float[Array, ""]
    parameter_norm: Float[Array, ""]
    finite: Bool[Array, ""]
    skipped: Int[Array, ""]
    failing: Int[Array, ""]
    report: Report


StepFunction = Callable[[TrainState, Params, Any], tuple[TrainState, StepReport]]


def fresh_state(params: Params, config: OptimiserConfig, steps: int) -> TrainState:
    """The state before the first step, laid out like the parameters."""
    mesh = next(iter(params.values())).sharding.mesh  # type: ignore[union-attr]
    optimiser = make_optimiser(config, steps)
    layout = state_shardings(jax.eval_shape(optimiser.init, params), params)
    # One buffer per counter: the step donates them.
    zero = lambda: jax.device_put(jnp.zeros((), jnp.int32), NamedSharding(mesh, PartitionSpec()))
    return TrainState(
        params=params,
        ema_params=copied(params),
        opt_state=jax.jit(optimiser.init, out_shardings=layout)(params),
        step=zero(),
        skipped=zero(),
        failing=zero(),
    )


def state_shardings(tree: Any, params: Params) -> Any:
    """Shardings of a tree's leaves: a dictionary by path, as the parameters are, is laid out as they are."""
    mesh = next(iter(params.values())).sharding.mesh  # type: ignore[union-attr]
    whole = NamedSharding(mesh, PartitionSpec())

    def of(path: tuple[Any, ...], leaf: Any) -> Any:
        name = path[-1].key if path and isinstance(path[-1], jax.tree_util.DictKey) else None
        return params[name].sharding if name in params and leaf.shape == params[name].shape else whole

    leaves, form = jax.tree_util.tree_flatten_with_path(tree)
    return jax.tree.unflatten(form, [of(path, leaf) for path, leaf in leaves])


def make_step(
    objective: Objective, config: OptimiserConfig, *, steps: int, seed: int, like: TrainState
) -> StepFunction:
    """The compiled step of a run. It gives its first argument's memory to its result.

    Args:
      objective: what is minimised.
      steps: of the whole run, for the learning rate.
      seed: of all noise; a step's noise follows from it, the step's number and the row.
      like: a state, for the layout of the result.
    """
    optimiser = make_optimiser(config, steps)
    layout = [leaf.sharding for leaf in jax.tree.leaves(like)]
    everywhere = like.step.sharding  # every process reads all of the report

    def step(state: TrainState, frozen: Params, batch: Any) -> tuple[TrainState, StepReport]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        batch = dataclasses.replace(batch, weights=batch.weights / jnp.sum(batch.weights))
        loss, gradients, report = _gradients(objective, state.params, frozen, batch, key, parts=config.accumulate)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = optimiser.update(gradients, state.opt_state, state.params)
        # Without a finite gradient nothing moves.
        updates = jax.tree.map(lambda x: jnp.where(finite, x, 0), updates)
        opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), opt_state, state.opt_state)
        params = jax.tree.map(jnp.add, state.params, updates)
        share = jnp.where(finite, ema_weight(config, state.step), 0.0)
        ema_params = jax.tree.map(lambda a, p: a + share * (p - a), state.ema_params, params)
        bad = 1 - finite.astype(jnp.int32)
        new = TrainState(
            params=params,
            ema_params=ema_params,
            opt_state=opt_state,
            step=state.step + 1,
            skipped=state.skipped + bad,
            failing=(state.failing + 1) * bad,
        )
        metrics = StepReport(
            loss=loss,
            gradient_norm=norm,
            update_norm=optax.tree.norm(updates),
            parameter_norm=optax.tree.norm(params),
            finite=finite,
            skipped=new.skipped,
            failing=new.failing,
            report=report,
        )
        return _laid_out(new, layout), jax.lax.with_sharding_constraint(metrics, everywhere)

    return jax.jit(step, donate_argnums=0)


def _laid_out(state: TrainState, layout: list[Any]) -> TrainState:
    leaves, form = jax.tree.flatten(state)
    pinned = [jax.lax.with_sharding_constraint(x, where) for x, where in zip(leaves, layout, strict=True)]
    return jax.tree.unflatten(form, pinned)


def _gradients(
    objective: Objective, params: Params, frozen: Params, batch: Any, key: Array, *, parts: int
) -> tuple[Array, Params, Report]:
    """Loss, gradients and report of a batch cut into parts. Each part takes every n-th row, so none changes device."""
    of_part = jax.value_and_grad(objective, has_aux=True)
    if parts == 1:
        (loss, report), gradients = of_part(params, frozen, batch, key)
        return loss, gradients, report
    leaves, form = jax.tree.flatten(batch)
    cut = [jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0) for x in leaves]

    def add(total: tuple[Array, Params], part: list[Array]) -> tuple[tuple[Array, Params], tuple[Any, Array]]:
        (loss, report), gradients = of_part(params, frozen, jax.tree.unflatten(form, part), key)
        return jax.tree.map(jnp.add, total, (loss, gradients)), (report.sums, report.rows)

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    (loss, gradients), (sums, rows) = jax.lax.scan(add, zeros, cut)
    sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
    return loss, gradients, Report(sums=sums, rows=jnp.moveaxis(rows, 0, 1).reshape(-1))
