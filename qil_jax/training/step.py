"""The compiled training step: gradients of microbatches, the optimiser and the EMA."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from qil_jax.training.lora import with_dropout
from qil_jax.training.objectives import LossMetrics, Objective
from qil_jax.training.optimiser import OptimiserConfig, ema_weight, make_optimiser
from qil_jax.training.parameters import Params, copied


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """The training state, which a step updates.

    Attributes:
      params: trained parameters by path, fp32.
      ema_params: exponential moving average (EMA) of the trained parameters, which is exported.
      opt_state: state of the optimiser in optax.
      step: number of steps taken.
      skipped: number of steps without a finite loss and gradient, which left the parameters unchanged.
      failing: number of most recent successive steps without a finite loss and gradient.
    """

    params: Params
    ema_params: Params
    opt_state: Any
    step: Int[Array, ""]
    skipped: Int[Array, ""]
    failing: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Metrics of a step.

    Attributes:
      loss: weighted loss of the batch.
      gradient_norm: global norm of the gradient before clipping.
      update_norm: global norm of the parameters' change.
      parameter_norm: global norm of the parameters after the step.
      finite: whether loss and gradient are finite.
      skipped, failing: values of the counters in TrainState after the step.
      losses: loss by term and by row, summed over microbatches.
    """

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    update_norm: Float[Array, ""]
    parameter_norm: Float[Array, ""]
    finite: Bool[Array, ""]
    skipped: Int[Array, ""]
    failing: Int[Array, ""]
    losses: LossMetrics


StepFunction = Callable[[TrainState, Params, Any], tuple[TrainState, StepMetrics]]


def fresh_state(params: Params, config: OptimiserConfig, steps: int) -> TrainState:
    """The state before the first step, sharded like the parameters."""
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


def abstract_state(params: Mapping[str, jax.ShapeDtypeStruct], config: OptimiserConfig, steps: int) -> TrainState:
    """The shapes, dtypes and shardings of `fresh_state`, with which a step is lowered for devices that are not there.

    Args:
      params: shape, dtype and sharding of each trained parameter.
      config: hyperparameters of the optimiser.
      steps: number of steps of the whole run.
    """
    mesh = next(iter(params.values())).sharding.mesh  # type: ignore[union-attr]
    opt_state = jax.eval_shape(make_optimiser(config, steps).init, params)
    laid = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    counter = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    values: dict[str, Any] = dict.fromkeys(("step", "skipped", "failing"), counter)
    values |= {"params": dict(params), "ema_params": dict(params)}
    return TrainState(opt_state=jax.tree.map(laid, opt_state, state_shardings(opt_state, params)), **values)


def state_shardings(tree: Any, params: Mapping[str, Any]) -> Any:
    """Shardings of a tree's leaves: dictionaries by parameter path have the parameters' shardings."""
    mesh = next(iter(params.values())).sharding.mesh
    whole = NamedSharding(mesh, PartitionSpec())

    def of(path: tuple[Any, ...], leaf: Any) -> Any:
        name = path[-1].key if path and isinstance(path[-1], jax.tree_util.DictKey) else None
        like = params.get(name) if isinstance(name, str) else None
        return like.sharding if like is not None and leaf.shape == like.shape else whole

    leaves, form = jax.tree_util.tree_flatten_with_path(tree)
    return jax.tree.unflatten(form, [of(path, leaf) for path, leaf in leaves])


def make_step(
    objective: Objective, config: OptimiserConfig, *, steps: int, seed: int, like: TrainState, dropout: float = 0.0
) -> jax.stages.Wrapped:
    """The compiled step of a run, which donates its first argument's buffers to its result.

    Args:
      objective: loss of a batch.
      config: hyperparameters of the optimiser.
      steps: number of steps of the whole run, which determines the learning rate.
      seed: seed of all noise; a step's noise is drawn from the seed, the step's index and the row's index.
      like: state whose shardings the result has.
      dropout: dropout rate of the input features of low-rank changes.
    """
    optimiser = make_optimiser(config, steps, {path: leaf.sharding for path, leaf in like.params.items()})
    layout = [leaf.sharding for leaf in jax.tree.leaves(like)]
    everywhere = like.step.sharding  # every process reads all metrics

    def loss_of(params: Params, frozen: Params, batch: Any, key: Array) -> tuple[Array, LossMetrics]:
        params = with_dropout(params, key, dropout) if dropout else params
        return objective(params, frozen, batch, key)

    def step(state: TrainState, frozen: Params, batch: Any) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        batch = dataclasses.replace(batch, weights=batch.weights / jnp.sum(batch.weights))
        loss, gradients, losses = _gradients(loss_of, state.params, frozen, batch, key, microbatches=config.accumulate)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = optimiser.update(gradients, state.opt_state, state.params)
        # Without a finite gradient the parameters stay unchanged.
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
        metrics = StepMetrics(
            loss=loss,
            gradient_norm=norm,
            update_norm=optax.tree.norm(updates),
            parameter_norm=optax.tree.norm(params),
            finite=finite,
            skipped=new.skipped,
            failing=new.failing,
            losses=losses,
        )
        return _laid_out(new, layout), jax.lax.with_sharding_constraint(metrics, everywhere)

    return jax.jit(step, donate_argnums=0)


def _laid_out(state: TrainState, layout: list[Any]) -> TrainState:
    leaves, form = jax.tree.flatten(state)
    pinned = [jax.lax.with_sharding_constraint(x, where) for x, where in zip(leaves, layout, strict=True)]
    return jax.tree.unflatten(form, pinned)


def _gradients(
    objective: Objective, params: Params, frozen: Params, batch: Any, key: Array, *, microbatches: int
) -> tuple[Array, Params, LossMetrics]:
    """Loss, gradients and metrics of a batch in n microbatches of every n-th row, so that no row changes its device."""
    gradients_of = jax.value_and_grad(objective, has_aux=True)
    if microbatches == 1:
        (loss, losses), gradients = gradients_of(params, frozen, batch, key)
        return loss, gradients, losses
    leaves, form = jax.tree.flatten(batch)
    cut = [jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0) for x in leaves]

    def add(total: tuple[Array, Params], part: list[Array]) -> tuple[tuple[Array, Params], tuple[Any, Array]]:
        (loss, losses), gradients = gradients_of(params, frozen, jax.tree.unflatten(form, part), key)
        return jax.tree.map(jnp.add, total, (loss, gradients)), (losses.sums, losses.rows)

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    (loss, gradients), (sums, rows) = jax.lax.scan(add, zeros, cut)
    sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
    return loss, gradients, LossMetrics(sums=sums, rows=jnp.moveaxis(rows, 0, 1).reshape(-1))
