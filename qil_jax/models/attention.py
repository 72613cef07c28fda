"""Attention of all three networks, by one of several implementations with the same result up to rounding."""

from collections.abc import Callable
from enum import StrEnum

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from qil_jax.choices import AttentionKind


class Mask(StrEnum):
    """The keys of its own segment that a query attends to."""

    FULL = "full"
    CAUSAL = "causal"  # keys at or before the query's index; needs as many queries as keys


XLA_KINDS = (AttentionKind.XLA, AttentionKind.XLA_CHUNKED, AttentionKind.XLA_BY_HEAD)
"""The implementations of `attention`, which run everywhere; the others need a device's own kernels (`kernels`)."""
SCORES_PER_CHUNK = 1 << 23
"""Number of scores that XLA_CHUNKED holds at once (32 MiB in fp32), unless a chunk would be too small."""
LEAST_QUERIES = 128
"""Number of queries of which chunks are multiples: the rows of a TPU's matrix unit."""
QUERIES_PER_CHUNK = 512
"""Queries per chunk of XLA_BY_HEAD: few enough for the cache, enough for an efficient matrix product."""
Ids = tuple[Array, Array]
"""Segment ids of queries [..., t] and keys [..., s]."""
Pair = tuple[Array, Array]
"""An array of the text tokens and one of the image tokens."""
Attend = Callable[[Pair, Pair, Pair, Pair], Pair]
"""Joint attention of text and image: from queries, keys and values [b, t, n, d] and segment ids [b, t], each a pair, to
the pair of mixed values [b, t, n, d]. `joint_attention` makes that of one device, `kernels.attend_on` a mesh's."""


def attention(
    q: Float[Array, "b t n d"],
    k: Float[Array, "b s n d"],
    v: Float[Array, "b s n d"],
    *,
    segments: tuple[Int[Array, "b t"], Int[Array, "b s"]] | None = None,
    mask: Mask = Mask.FULL,
    kind: AttentionKind = AttentionKind.XLA,
) -> Float[Array, "b t n d"]:
    """Attention softmax(q k^T / sqrt(d)) v, each query seeing the keys of its own segment.

    Args:
      q, k, v: queries, keys and values; the softmax is computed in fp32.
      segments: segment ids of queries and keys. Tokens attend within equal ids; padding is segment 0 and attends to
        padding, so that no softmax is empty. None: every token attends to every token.
      mask: whether keys after the query are masked out.
      kind: the implementation, one of XLA_KINDS. The chunked ones support Mask.FULL only.

    Returns:
      The weighted sums of the values, in q's dtype.

    Raises:
      ValueError: if a causal mask is requested of a chunked implementation, or a kernel that is not XLA's.
    """
    if mask is Mask.CAUSAL and kind is not AttentionKind.XLA:
        raise ValueError(f"{kind} attention has no causal mask: use AttentionKind.XLA")
    return _attention(q, k, v, segments, mask, kind)[0]


def attention_part(
    q: Float[Array, "b t n d"],
    k: Float[Array, "b s n d"],
    v: Float[Array, "b s n d"],
    *,
    segments: tuple[Int[Array, "b t"], Int[Array, "b s"]],
    kind: AttentionKind = AttentionKind.XLA,
) -> tuple[Float[Array, "b t n d"], Float[Array, "b t n"]]:
    """Attention to some of the keys, and the fp32 logarithm of the sum of its exponentials.

    By that logarithm, the results for other keys can be averaged with it: see `merge_parts`.
    """
    mixed, logsumexp = _attention(q, k, v, segments, Mask.FULL, kind)
    return mixed, jnp.swapaxes(logsumexp, 1, 2)


Part = tuple[Array, Array]
"""Mixed values [b, t, n, d] over some of the keys, and the logarithm [b, t, n] of their sum of exponentials."""


def merge_parts(one: Part, other: Part) -> Part:
    """Attention to the keys of both parts, in fp32."""
    total = jnp.logaddexp(one[1], other[1])
    weigh = lambda part: part[0].astype(jnp.float32) * jnp.exp(part[1] - total)[..., None]
    return weigh(one) + weigh(other), total


def _attention(
    q: Array, k: Array, v: Array, segments: Pair | None, mask: Mask, kind: AttentionKind
) -> tuple[Array, Array]:
    """The mixed values [b, t, n, d] and the logarithms of the sums of exponentials [b, n, t]."""
    b, _, n, _ = q.shape
    # Heads come first and keys are transposed once here, rather than in every chunk.
    q, k, v = jnp.swapaxes(q, 1, 2), jnp.transpose(k, (0, 2, 3, 1)), jnp.swapaxes(v, 1, 2)
    ids = None if segments is None else (segments[0][:, None], segments[1][:, None])
    match kind:
        case AttentionKind.XLA:
            mixed, total = _mix(q, k, v, ids, mask)
        case AttentionKind.XLA_CHUNKED:
            multiples = max(1, SCORES_PER_CHUNK // (b * n * v.shape[2]) // LEAST_QUERIES)
            mixed, total = _mix_chunks(q, k, v, ids, rows=multiples * LEAST_QUERIES)
        case AttentionKind.XLA_BY_HEAD:
            fold = lambda x: jnp.broadcast_to(x, (b, n, *x.shape[2:])).reshape(b * n, *x.shape[2:])
            one_head = lambda xs: _mix_chunks(*xs, rows=QUERIES_PER_CHUNK)
            by_head = jax.lax.map(one_head, jax.tree.map(fold, (q, k, v, ids)))
            mixed, total = (x.reshape(b, n, *x.shape[1:]) for x in by_head)
        case _:
            raise ValueError(f"{kind} is no program of XLA: make it by kernels.attend_for")
    return jnp.swapaxes(mixed, 1, 2), total


def joint_attention(kind: AttentionKind = AttentionKind.XLA) -> Attend:
    """The attention of all tokens of both streams to all tokens of both, in the order text, image."""

    def attend(q: Pair, k: Pair, v: Pair, segments: Pair) -> Pair:
        joined = [jnp.concatenate(pair, axis=1) for pair in (q, k, v)]
        ids = jnp.concatenate(segments, axis=1)
        mixed = attention(*joined, segments=(ids, ids), kind=kind)
        text = q[0].shape[1]
        return mixed[:, :text], mixed[:, text:]

    return attend


JOINT = joint_attention()
"""The plainest joint attention, by which others are checked."""


def _mix_chunks(q: Array, k: Array, v: Array, ids: Ids | None, *, rows: int) -> tuple[Array, Array]:
    """`_mix`, at most `rows` queries at a time. The backward pass computes the scores of each chunk again."""
    t = q.shape[-2]
    chunks = -(-t // rows)
    if chunks == 1:
        return _mix(q, k, v, ids)
    rows = min(rows, -(-t // chunks // LEAST_QUERIES) * LEAST_QUERIES)
    q_chunks = _split(q, chunks, rows, axis=q.ndim - 2)
    if ids is None:
        parts = jax.lax.map(jax.checkpoint(lambda q: _mix(q, k, v, None)), q_chunks)
    else:
        id_chunks = _split(ids[0], chunks, rows, axis=ids[0].ndim - 1)
        parts = jax.lax.map(jax.checkpoint(lambda x: _mix(x[0], k, v, (x[1], ids[1]))), (q_chunks, id_chunks))
    mixed, total = jnp.moveaxis(parts[0], 0, -3), jnp.moveaxis(parts[1], 0, -2)
    mixed = mixed.reshape(*mixed.shape[:-3], chunks * rows, -1)
    return mixed[..., :t, :], total.reshape(*total.shape[:-2], chunks * rows)[..., :t]


def _split(x: Array, chunks: int, rows: int, *, axis: int) -> Array:
    """An array padded along `axis` and split into chunks, which become the leading axis."""
    widths = [(0, chunks * rows - x.shape[axis] if i == axis else 0) for i in range(x.ndim)]
    return jnp.moveaxis(jnp.pad(x, widths).reshape(*x.shape[:axis], chunks, rows, *x.shape[axis + 1 :]), axis, 0)


def _mix(q: Array, k: Array, v: Array, ids: Ids | None, mask: Mask = Mask.FULL) -> tuple[Array, Array]:
    """Attention of q [..., t, d] to k [..., d, s] and v [..., s, d], and the logsumexp [..., t] of its scores."""
    scores = jnp.matmul(q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if mask is Mask.CAUSAL:
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    if ids is not None:
        scores = jnp.where(ids[0][..., :, None] == ids[1][..., None, :], scores, -jnp.inf)
    # A padded query may match no key at all; the bounds keep its result finite.
    peak = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), jnp.finfo(jnp.float32).min)
    peak = jax.lax.stop_gradient(peak)
    weights = jnp.exp(scores - peak)
    total = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    mixed = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (mixed / total).astype(q.dtype), (peak + jnp.log(total))[..., 0]
