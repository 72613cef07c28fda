"""The one door to attention (design.md 3.6)."""

from enum import StrEnum

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


class AttentionKind(StrEnum):
    """Which program computes attention. All give the same numbers up to rounding."""

    XLA = "xla"  # one matrix of scores, b * n * t * s values
    XLA_CHUNKED = "xla_chunked"  # scores of a few query rows at a time: memory stays bounded


class Mask(StrEnum):
    """Which keys of its own segment a query sees."""

    FULL = "full"
    CAUSAL = "causal"  # keys at or before the query's index; needs as many queries as keys


SCORES_PER_CHUNK = 1 << 23
"""Upper bound of scores held at once by XLA_CHUNKED (32 MiB in fp32)."""


def attention(
    q: Float[Array, "b t n d"],
    k: Float[Array, "b s n d"],
    v: Float[Array, "b s n d"],
    *,
    segments: tuple[Int[Array, "b t"], Int[Array, "b s"]] | None = None,
    mask: Mask = Mask.FULL,
    kind: AttentionKind = AttentionKind.XLA,
) -> Float[Array, "b t n d"]:
    """softmax(q k^T / sqrt(d)) v, each query seeing the keys of its own segment.

    Args:
      q, k, v: queries, keys and values; softmax in fp32.
      segments: ids of the queries' and keys' segments. Tokens attend within equal ids only; padding is segment 0 and
        sees padding, so nothing is ever divided by zero. None: all tokens see all.
      mask: whether later keys are hidden.
      kind: the program. XLA_CHUNKED takes Mask.FULL only.

    Returns:
      The mixed values, in q's dtype.
    """
    if kind is AttentionKind.XLA:
        return _dense(q, k, v, segments, mask)
    if mask is Mask.CAUSAL:
        raise ValueError("XLA_CHUNKED attention has no causal mask: use AttentionKind.XLA")
    b, t, n, _ = q.shape
    rows = max(1, SCORES_PER_CHUNK // (b * n * k.shape[1]))
    if rows >= t:
        return _dense(q, k, v, segments)
    chunks = -(-t // rows)
    rows = -(-t // chunks)
    pad = chunks * rows - t
    split = lambda x: jnp.moveaxis(x.reshape(b, chunks, rows, *x.shape[2:]), 1, 0)  # noqa: E731
    q_rows = split(jnp.pad(q, ((0, 0), (0, pad), (0, 0), (0, 0))))
    if segments is None:
        mixed = jax.lax.map(lambda rows: _dense(rows, k, v, None), q_rows)
    else:
        q_ids, k_ids = segments
        ids = split(jnp.pad(q_ids, ((0, 0), (0, pad))))
        mixed = jax.lax.map(lambda x: _dense(x[0], k, v, (x[1], k_ids)), (q_rows, ids))
    return jnp.moveaxis(mixed, 0, 1).reshape(b, chunks * rows, n, -1)[:, :t]


def _dense(q: Array, k: Array, v: Array, segments: tuple[Array, Array] | None, mask: Mask = Mask.FULL) -> Array:
    scores = jnp.einsum("btnd,bsnd->bnts", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if mask is Mask.CAUSAL:
        scores = jnp.where(jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool)), scores, -jnp.inf)
    if segments is not None:
        same = segments[0][:, None, :, None] == segments[1][:, None, None, :]
        scores = jnp.where(same, scores, -jnp.inf)
        # A padded query row of a chunk may match no key at all: keep it finite.
        peak = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), jnp.finfo(jnp.float32).min)
    else:
        peak = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - jax.lax.stop_gradient(peak))
    total = jnp.maximum(jnp.sum(weights, axis=-1), jnp.finfo(jnp.float32).tiny)
    mixed = jnp.einsum("bnts,bsnd->btnd", weights.astype(v.dtype), v)
    return (mixed / jnp.swapaxes(total, 1, 2)[..., None]).astype(q.dtype)
