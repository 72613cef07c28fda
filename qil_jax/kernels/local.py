"""Attention of the arrays that one device holds, by kernels of a device's own."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from qil_jax.kernels.plan import Blocks
from qil_jax.mesh.rules import MeshError
from qil_jax.models.attention import Part

Ids = tuple[Array, Array]
"""Segment ids of queries [b, t] and keys [b, s]."""


def splash(
    q: Float[Array, "b t n d"],
    k: Float[Array, "b s n d"],
    v: Float[Array, "b s n d"],
    ids: Ids,
    *,
    interpret: bool = False,
) -> Float[Array, "b t n d"]:
    """Pallas splash attention of q [b, t, n, d] to k and v [b, s, n, d], padded to whole blocks with segment 0.

    Gradients come from its separate kernels for dq and for dk and dv.
    """
    blocks = Blocks.of(q.shape[1], k.shape[1])
    mixed = jax.vmap(_splash_kernel(q.shape[2], blocks, interpret))(*_padded(q, k, v, ids, blocks))
    return jnp.swapaxes(mixed, 1, 2)[:, : q.shape[1]]


def splash_part(
    q: Float[Array, "b t n d"],
    k: Float[Array, "b s n d"],
    v: Float[Array, "b s n d"],
    ids: Ids,
    *,
    interpret: bool = False,
) -> Part:
    """`splash` with the logarithm of the sum of exponentials; it has no gradient."""
    blocks = Blocks.of(q.shape[1], k.shape[1])
    kernel = _splash_kernel(q.shape[2], blocks, interpret, save_residuals=True)
    mixed, (total,) = jax.vmap(kernel)(*_padded(q, k, v, ids, blocks))
    back = lambda x: jnp.swapaxes(x, 1, 2)[:, : q.shape[1]]
    return back(mixed), back(total)


def _splash_kernel(heads: int, blocks: Blocks, interpret: bool, *, save_residuals: bool = False) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas

    q, kv, compute = blocks.block_q, blocks.block_kv, blocks.block_kv_compute
    sizes = pallas.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=compute,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=compute,
        block_q_dq=q,
        block_kv_dq=kv,
    )
    mask = pallas.MultiHeadMask([pallas.FullMask((blocks.queries, blocks.keys))] * heads)
    return pallas.make_splash_mha(
        mask,
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        interpret=interpret,
        save_residuals=save_residuals,
    )


def _padded(q: Array, k: Array, v: Array, ids: Ids, blocks: Blocks) -> tuple[Array, Array, Array, Any]:
    """The kernel's arguments: heads before tokens, scaled queries, and whole blocks."""
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas

    def longer(x: Array, length: int) -> Array:
        return jnp.pad(x, [(0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])

    first = lambda x, length: jnp.swapaxes(longer(x, length), 1, 2)
    segments = pallas.SegmentIds(q=longer(ids[0], blocks.queries), kv=longer(ids[1], blocks.keys))
    q = first(q * q.shape[-1] ** -0.5, blocks.queries)
    return q, first(k, blocks.keys), first(v, blocks.keys), segments


def cudnn(
    q: Float[Array, "b t n d"], k: Float[Array, "b s n d"], v: Float[Array, "b s n d"], ids: Ids
) -> Float[Array, "b t n d"]:
    """Flash attention of cuDNN. Segments are a mask [b, 1, t, s], since its lengths know padding at the end only.

    Raises:
      MeshError: if the arrays are neither bfloat16 nor float16.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise MeshError([f"cudnn attention computes in bfloat16, not {q.dtype}: use bfloat16, or another kind"])
    return jax.nn.dot_product_attention(q, k, v, mask=_equal(ids), implementation="cudnn")


def tokamax(
    q: Float[Array, "b t n d"], k: Float[Array, "b s n d"], v: Float[Array, "b s n d"], ids: Ids
) -> Float[Array, "b t n d"]:
    """The attention of the package tokamax, which chooses its kernel by the device; segments are a mask."""
    import tokamax as kernels  # type: ignore[import-not-found]

    return kernels.dot_product_attention(q, k, v, mask=_equal(ids))


def _equal(ids: Ids) -> Array:
    return ids[0][:, None, :, None] == ids[1][:, None, None, :]
