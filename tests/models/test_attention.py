"""Attention against a plain softmax in double precision, for every kind, with segments and padding."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qil_jax.models import attention as door
from qil_jax.models.attention import XLA_KINDS, AttentionKind, Mask, attention


def plain(q, k, v, allowed) -> np.ndarray:
    scores = np.einsum("btnd,bsnd->bnts", q, k, dtype=np.float64) / np.sqrt(q.shape[-1])
    scores = np.where(allowed[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bnts,bsnd->btnd", weights / weights.sum(axis=-1, keepdims=True), v)


def inputs(t: int, s: int):
    random = np.random.default_rng(t)
    return [random.standard_normal((2, n, 3, 8)).astype(np.float32) for n in (t, s, s)]


@pytest.mark.parametrize("kind", XLA_KINDS)
@pytest.mark.parametrize("scores", [1 << 23, 300, 7])
@pytest.mark.full
def test_segments(kind, scores, monkeypatch):
    monkeypatch.setattr(door, "SCORES_PER_CHUNK", scores)
    monkeypatch.setattr(door, "LEAST_QUERIES", 1)
    monkeypatch.setattr(door, "QUERIES_PER_CHUNK", max(1, scores // 50))
    q, k, v = inputs(23, 23)
    ids = np.array([[1] * 9 + [2] * 10 + [0] * 4, [1] * 23])
    allowed = ids[:, :, None] == ids[:, None, :]
    actual = attention(*map(jnp.asarray, (q, k, v)), segments=(jnp.asarray(ids),) * 2, kind=kind)
    np.testing.assert_allclose(actual, plain(q, k, v, allowed), atol=2e-6)
    free = attention(*map(jnp.asarray, (q, k, v)), kind=kind)
    np.testing.assert_allclose(free, plain(q, k, v, np.ones_like(allowed)), atol=2e-6)


@pytest.mark.parametrize("kind", XLA_KINDS)
@pytest.mark.full
def test_unlike_lengths(kind, monkeypatch):
    monkeypatch.setattr(door, "SCORES_PER_CHUNK", 200)
    monkeypatch.setattr(door, "LEAST_QUERIES", 1)
    monkeypatch.setattr(door, "QUERIES_PER_CHUNK", 2)
    q, k, v = inputs(5, 31)
    actual = attention(*map(jnp.asarray, (q, k, v)), kind=kind)
    np.testing.assert_allclose(actual, plain(q, k, v, np.ones((2, 5, 31), bool)), atol=2e-6)


def test_causal():
    q, k, v = inputs(12, 12)
    ids = np.array([[1] * 12, [1] * 7 + [0] * 5])
    allowed = np.tril(ids[:, :, None] == ids[:, None, :])
    actual = attention(*map(jnp.asarray, (q, k, v)), segments=(jnp.asarray(ids),) * 2, mask=Mask.CAUSAL)
    np.testing.assert_allclose(actual, plain(q, k, v, allowed), atol=2e-6)
    with pytest.raises(ValueError, match=r"use AttentionKind\.XLA"):
        attention(*map(jnp.asarray, (q, k, v)), mask=Mask.CAUSAL, kind=AttentionKind.XLA_BY_HEAD)


@pytest.mark.parametrize("kind", XLA_KINDS)
@pytest.mark.full
def test_large_scores_and_gradients_stay_finite(kind, monkeypatch):
    monkeypatch.setattr(door, "SCORES_PER_CHUNK", 100)
    monkeypatch.setattr(door, "LEAST_QUERIES", 1)
    monkeypatch.setattr(door, "QUERIES_PER_CHUNK", 4)
    q, k, v = (jnp.asarray(x) * 200 for x in inputs(11, 11))
    ids = jnp.asarray([[1] * 6 + [0] * 5, [0] * 11])
    value, gradients = jax.value_and_grad(lambda *x: attention(*x, segments=(ids, ids), kind=kind).sum(), (0, 1, 2))(
        q, k, v
    )
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


MEASURE = """
import pathlib
import jax, jax.numpy as jnp
from qil_jax.models.attention import AttentionKind, attention
x = jnp.ones((1, 6144, 4, 16))
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
for kind in AttentionKind.XLA_BY_HEAD, AttentionKind.XLA_CHUNKED, AttentionKind.XLA:
    before, mixed = peak(), lambda x: attention(x, x, x, kind=kind)
    program = jax.grad(lambda x: mixed(x).sum()) if BACKWARD else mixed
    jax.block_until_ready(jax.jit(program)(x))
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.full
def test_memory_of_chunks_is_bounded(backward):
    """Measured on the process: the compiler's own figure leaves out what its kernels allocate."""
    program = f"BACKWARD = {backward}{MEASURE}"
    one = os.environ | {"XLA_FLAGS": ""}  # the buffers of eight devices' threads would be measured, too
    run = subprocess.run([sys.executable, "-c", program], env=one, capture_output=True, text=True, check=True)
    by_head, chunked, whole = map(int, run.stdout.split())
    scores = 4 * 4 * 6144 * 6144
    assert whole > scores * 3 / 4  # the measure sees the scores
    assert chunked < scores / 3 and by_head < scores / 3
