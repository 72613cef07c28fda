"""Attention on eight devices, in every kind and spread that runs here, is that of one device: values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import error

from qil_jax.kernels import Spread, attend_for, attend_on, plan_attention
from qil_jax.mesh import INFERENCE_RULES, MeshError, MeshShape, Sharding, make_mesh, single_device_mesh
from qil_jax.models.attention import AttentionKind, attention_part, joint_attention, merge_parts

ROWS, TEXT, IMAGE, HEADS, DIM = 2, 24, 40, 8, 8
MESHES = ["context=8", "fsdp=2,context=2,tensor=2", "tensor=8"]
KINDS = [AttentionKind.XLA, AttentionKind.XLA_CHUNKED, AttentionKind.XLA_BY_HEAD, AttentionKind.SPLASH]
SPREADS = [Spread.GATHER, Spread.ULYSSES, Spread.RING]


@functools.cache
def inputs() -> tuple:
    """Queries, keys and values, and segments: two samples and padding in the first row, in the second one sample."""
    random = np.random.default_rng(5)
    pair = lambda: tuple(jnp.asarray(random.standard_normal((ROWS, n, HEADS, DIM)), jnp.float32) for n in (TEXT, IMAGE))
    text, image = np.ones((ROWS, TEXT), np.int32), np.ones((ROWS, IMAGE), np.int32)
    text[0], image[0] = [1] * 7 + [0] * 4 + [2] * 11 + [0] * 2, [1] * 9 + [2] * 28 + [0] * 3
    text[1, 5:] = 0
    return pair(), pair(), pair(), (jnp.asarray(text), jnp.asarray(image))


def values_and_gradients(attend) -> list[np.ndarray]:
    """The mixed values of all tokens but padding, and the gradients of a sum of theirs."""
    q, k, v, segments = inputs()

    def loss(q, k, v):
        mixed = attend(q, k, v, segments)
        weighted = [jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape) * x for x in mixed]
        shown = [jnp.where((ids > 0)[..., None, None], x, 0) for x, ids in zip(weighted, segments, strict=True)]
        return sum(jnp.sum(x) for x in shown), shown

    gradients, shown = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x) for x in jax.tree.leaves((shown, gradients))]


@functools.cache
def alone() -> list[np.ndarray]:
    return values_and_gradients(joint_attention())


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.full
def test_devices_change_nothing(kind, spread, mesh):
    if kind is AttentionKind.SPLASH and spread is Spread.RING and "context" in mesh:
        pytest.skip("it has no gradient: refused below")
    where = Sharding(make_mesh(MeshShape.parse(mesh)), INFERENCE_RULES)
    attend = attend_for(kind, spread, heads=HEADS, sharding=where, backward=True)
    for found, wanted in zip(values_and_gradients(attend), alone(), strict=True):
        assert np.abs(wanted).max() > 0.1
        assert error(found, wanted) <= 2e-5


@pytest.mark.full
def test_splash_on_one_device():
    attend = attend_for(
        AttentionKind.SPLASH, Spread.NONE, heads=HEADS, sharding=Sharding(single_device_mesh(), INFERENCE_RULES)
    )
    for found, wanted in zip(values_and_gradients(attend), alone(), strict=True):
        assert error(found, wanted) <= 2e-5


@pytest.mark.full
def test_splash_in_a_ring_has_values_but_no_gradient():
    sharding = Sharding(make_mesh(MeshShape(context=8)), INFERENCE_RULES)
    attend = attend_for(AttentionKind.SPLASH, Spread.RING, heads=HEADS, sharding=sharding)
    q, k, v, segments = inputs()
    found, wanted = (jax.jit(f)(q, k, v, segments) for f in (attend, joint_attention()))
    for mixed, exact, ids in zip(found, wanted, segments, strict=True):
        shown = np.asarray(ids) > 0
        assert error(np.asarray(mixed)[shown], np.asarray(exact)[shown]) <= 2e-5
    with pytest.raises(MeshError, match="no gradient in a ring"):
        attend_for(AttentionKind.SPLASH, Spread.RING, heads=HEADS, sharding=sharding, backward=True)


@pytest.mark.full
def test_padding_is_never_attended():
    """Whatever padding holds, no token sees it, on any device."""
    q, k, v, segments = inputs()
    spoilt = lambda pair: tuple(
        jnp.where((ids > 0)[..., None, None], x, 1e4) for x, ids in zip(pair, segments, strict=True)
    )
    sharding = Sharding(make_mesh(MeshShape(context=4, tensor=2)), INFERENCE_RULES)
    for kind, spread in [*((AttentionKind.XLA, s) for s in SPREADS), (AttentionKind.SPLASH, Spread.GATHER)]:
        attend = jax.jit(attend_for(kind, spread, heads=HEADS, sharding=sharding))
        for one, other, ids in zip(
            attend(q, k, v, segments), attend(q, spoilt(k), spoilt(v), segments), segments, strict=True
        ):
            shown = np.asarray(ids) > 0
            assert np.array_equal(np.asarray(one)[shown], np.asarray(other)[shown])


@pytest.mark.parametrize("kind", [AttentionKind.XLA, AttentionKind.XLA_CHUNKED, AttentionKind.XLA_BY_HEAD])
@pytest.mark.full
def test_parts_are_merged_to_the_whole(kind):
    (q, _), (k, k2), (v, v2), (ids, ids2) = inputs()
    parts = [attention_part(q, a, b, segments=(ids, i), kind=kind) for a, b, i in ((k, v, ids), (k2, v2, ids2))]
    join = lambda *x: jnp.concatenate(x, axis=1)
    whole, total = attention_part(q, join(k, k2), join(v, v2), segments=(ids, join(ids, ids2)))
    mixed, logsumexp = merge_parts(*parts)
    assert error(np.asarray(mixed), np.asarray(whole)) <= 2e-6
    assert error(np.asarray(logsumexp), np.asarray(total)) <= 2e-6


def test_one_device_runs_plain_joint_attention():
    attend = attend_for(
        AttentionKind.XLA, Spread.RING, heads=3, sharding=Sharding(single_device_mesh(), INFERENCE_RULES)
    )
    assert "shard_map" not in str(jax.make_jaxpr(attend)(*inputs()))


def test_sizes_that_do_not_divide_are_refused_before_compute():
    sharding = Sharding(make_mesh(MeshShape(fsdp=4, context=2)), INFERENCE_RULES)
    plan = plan_attention(AttentionKind.XLA, Spread.GATHER, heads=HEADS, sharding=sharding, platform="cpu")
    q, k, v, segments = jax.tree.map(lambda x: x[:, 1:], inputs())
    with pytest.raises(MeshError) as refused:
        jax.eval_shape(attend_on(plan, sharding), q, k, v, segments)
    rows, text, image = refused.value.problems
    assert rows.startswith("2 rows do not divide into 4 parts (cfg=1, data=1, fsdp=4)")
    assert text.startswith("23 text tokens do not divide into 2 parts") and "39 image tokens" in image
