"""Joint attention on a mesh: each device joins its own text and image tokens, so that nothing is resharded."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from qil_jax.choices import AttentionKind, Spread
from qil_jax.kernels.local import Ids, cudnn, splash, splash_part, tokamax
from qil_jax.kernels.plan import AttentionPlan, plan_attention
from qil_jax.mesh.rules import MeshError
from qil_jax.mesh.sharding import Sharding
from qil_jax.models.attention import (
    XLA_KINDS,
    Attend,
    Pair,
    Part,
    attention,
    attention_part,
    joint_attention,
    merge_parts,
)
from qil_jax.models.axes import Axis

Mix = Callable[[Array, Array, Array, Ids], Array]
"""Attention of q [b, t, n, d] to k and v [b, s, n, d] of one device, given both segment ids."""


def attend_for(
    kind: AttentionKind, spread: Spread, *, heads: int, sharding: Sharding, backward: bool = False
) -> Attend:
    """The joint attention of a transformer on a mesh; on one device with a kind of XLA it is `joint_attention(kind)`.

    Args:
      kind: implementation on each device.
      spread: how queries meet the keys of other devices; without effect where the rules split no sequence.
      heads: number of attention heads of the transformer (`MMDiTConfig.num_attention_heads`).
      sharding: mesh on which batches and parameters lie, and rules by which they were placed.
      backward: whether gradients are taken.

    Raises:
      MeshError: if the kind does not run on the devices, or heads or spread do not fit; all problems are listed.
    """
    platform = sharding.mesh.devices.flat[0].platform
    plan = plan_attention(kind, spread, heads=heads, sharding=sharding, platform=platform, backward=backward)
    return attend_on(plan, sharding)


def attend_on(plan: AttentionPlan, sharding: Sharding) -> Attend:
    """The joint attention of a plan. Rows and numbers of tokens must divide by the mesh's shards.

    The order of tokens within a sequence is without effect on attention. So each device joins the text and image tokens
    that it holds, their segment ids beside them, and sizes of chunks and blocks follow from what lies there.
    """
    mesh, rules = sharding.mesh, sharding.rules
    if mesh.size == 1 and plan.kind in XLA_KINDS:
        return joint_attention(plan.kind)
    heads = rules.spec((Axis.BATCH, Axis.TOKENS, Axis.HEADS, None))
    ids = rules.spec((Axis.BATCH, Axis.TOKENS))
    over = tuple(axis.value for axis in rules.table.get(Axis.TOKENS, ()))

    def local(q: Pair, k: Pair, v: Pair, segments: Pair) -> Pair:
        joined = [jnp.concatenate(pair, axis=1) for pair in (q, k, v, segments)]
        mixed = _spread(plan, over, *joined)
        text = q[0].shape[1]
        return mixed[:, :text], mixed[:, text:]

    pairs = ((heads, heads),) * 3
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(*pairs, (ids, ids)), out_specs=(heads, heads), check_vma=False)

    def attend(q: Pair, k: Pair, v: Pair, segments: Pair) -> Pair:
        _require_divisible(q, sharding)
        return mapped(q, k, v, segments)

    return attend


def _require_divisible(q: Pair, sharding: Sharding) -> None:
    """Refuse rows and tokens that the mesh cannot split evenly."""
    sizes = [("rows", q[0].shape[0], Axis.BATCH)]
    sizes += [(f"{name} tokens", x.shape[1], Axis.TOKENS) for name, x in zip(("text", "image"), q, strict=True)]
    problems = [
        f"{size} {what} do not divide into {ways} parts ({sharding.parts(axis)}): "
        f"pad them to a multiple of {ways}, or use fewer devices along these axes"
        for what, size, axis in sizes
        if size % (ways := sharding.ways(axis))
    ]
    if problems:
        raise MeshError(problems)


def _spread(plan: AttentionPlan, over: tuple[str, ...], q: Array, k: Array, v: Array, ids: Array) -> Array:
    """Attention of the queries of one device to the keys of all that share its sequences."""
    gather = functools.partial(jax.lax.all_gather, axis_name=over, axis=1, tiled=True)
    match plan.spread:
        case Spread.NONE:
            return _mix(plan)(q, k, v, (ids, ids))
        case Spread.GATHER:
            return _mix(plan)(q, gather(k), gather(v), (ids, gather(ids)))
        case Spread.ULYSSES:
            swap = functools.partial(jax.lax.all_to_all, axis_name=over, tiled=True)
            q, k, v = (swap(x, split_axis=2, concat_axis=1) for x in (q, k, v))
            ids = gather(ids)
            return swap(_mix(plan)(q, k, v, (ids, ids)), split_axis=1, concat_axis=2)
        case Spread.RING:
            return _ring(plan, over, q, k, v, ids)


def _ring(plan: AttentionPlan, over: tuple[str, ...], q: Array, k: Array, v: Array, ids: Array) -> Array:
    """Attention to one device's keys after another's, which travel round the ring."""
    part = _part(plan)
    ring = [(i, (i + 1) % plan.context) for i in range(plan.context)]

    def step(carry: tuple[tuple[Array, Array, Array], Part], _: None) -> tuple[tuple, None]:
        there, so_far = carry
        k, v, key_ids = there = jax.tree.map(lambda x: jax.lax.ppermute(x, over, ring), there)
        return (there, merge_parts(so_far, part(q, k, v, (ids, key_ids)))), None

    mixed, total = part(q, k, v, (ids, ids))
    start = ((k, v, ids), (mixed.astype(jnp.float32), total))
    (_, (mixed, _)), _ = jax.lax.scan(step, start, length=plan.context - 1)
    return mixed.astype(q.dtype)


def _mix(plan: AttentionPlan) -> Mix:
    match plan.kind:
        case AttentionKind.SPLASH:
            return functools.partial(splash, interpret=plan.interpret)
        case AttentionKind.CUDNN:
            return cudnn
        case AttentionKind.TOKAMAX:
            return tokamax
        case kind:
            return lambda q, k, v, ids: attention(q, k, v, segments=ids, kind=kind)


def _part(plan: AttentionPlan) -> Callable[[Array, Array, Array, Ids], Part]:
    if plan.kind is AttentionKind.SPLASH:
        return functools.partial(splash_part, interpret=plan.interpret)
    return lambda q, k, v, ids: attention_part(q, k, v, segments=ids, kind=plan.kind)
