"""Plans of attention: sizes of blocks, and every refusal with its fix."""

import pytest

from qil_jax.kernels import Blocks, Spread, plan_attention
from qil_jax.mesh import INFERENCE_RULES, AbstractSharding, MeshAxis, MeshError, MeshShape, Rules, abstract_mesh
from qil_jax.models.attention import AttentionKind
from qil_jax.models.axes import Axis


def plan(kind, spread, mesh: str, *, platform="tpu", heads=24, **more):
    where = AbstractSharding(abstract_mesh(MeshShape.parse(mesh)), INFERENCE_RULES)
    return plan_attention(kind, spread, heads=heads, sharding=where, platform=platform, **more)


@pytest.mark.parametrize(
    ("queries", "keys", "expected"),
    [
        (10112, 10112, (512, 1024, 512, 10240, 10240)),
        (1264, 10112, (256, 1024, 512, 1280, 10240)),
        (1264, 1264, (256, 640, 640, 1280, 1280)),
        (40, 40, (128, 128, 128, 128, 128)),
    ],
)
def test_blocks(queries, keys, expected):
    blocks = Blocks.of(queries, keys)
    assert (blocks.block_q, blocks.block_kv, blocks.block_kv_compute, blocks.queries, blocks.keys) == expected


@pytest.mark.parametrize("length", [1, 127, 128, 129, 1000, 4097, 11520, 51712])
def test_blocks_divide_padded_lengths(length):
    blocks = Blocks.of(length, length)
    assert blocks.queries % blocks.block_q == blocks.keys % blocks.block_kv == 0
    assert blocks.block_kv % blocks.block_kv_compute == blocks.block_kv_compute % 128 == blocks.block_q % 128 == 0
    assert length <= blocks.keys < max(length + 128, length * 1.07)


def test_heads_of_a_device():
    splash = AttentionKind.SPLASH
    assert plan(splash, Spread.NONE, "tensor=4,data=2").heads == 6
    assert plan(splash, Spread.ULYSSES, "tensor=2,context=4").heads == 3
    ring = plan(splash, Spread.RING, "context=8")
    assert (ring.heads, ring.context, ring.blocks(10112).keys) == (24, 8, 1280)
    assert plan(splash, Spread.GATHER, "context=8").blocks(10112).keys == 10240
    assert plan(splash, Spread.ULYSSES, "context=8").blocks(10112).queries == 10240


def test_a_spread_without_split_sequences_is_none():
    assert plan(AttentionKind.XLA, Spread.RING, "tensor=8").spread is Spread.NONE


@pytest.mark.parametrize(
    ("kind", "spread", "mesh", "more", "complaint"),
    [
        ("splash", "none", "tensor=5", {}, "24 heads do not divide over tensor=5"),
        ("splash", "none", "context=2", {}, "spread is none: use gather, ulysses or ring"),
        ("splash", "ulysses", "tensor=2,context=8", {}, "2 x 8 to divide 24 heads: use gather or ring"),
        ("splash", "ring", "context=2", {"backward": True}, "splash attention has no gradient in a ring"),
        ("cudnn", "ring", "context=2", {"platform": "gpu"}, "cudnn attention does not run in a ring"),
        ("cudnn", "none", "data=2", {"platform": "cpu"}, "NVIDIA GPUs, and the devices are cpu: use xla_chunked"),
        ("splash", "none", "data=2", {"platform": "gpu"}, "on TPUs, and the devices are gpu: use cudnn"),
        ("tokamax", "none", "data=2", {}, "run 'pip install tokamax', or use splash"),
    ],
)
def test_refusals(kind, spread, mesh, more, complaint, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MeshError) as refused:
        plan(AttentionKind(kind), Spread(spread), mesh, **more)
    (problem,) = refused.value.problems
    assert complaint in problem


def test_all_problems_are_listed():
    with pytest.raises(MeshError) as refused:
        plan(AttentionKind.CUDNN, Spread.NONE, "tensor=5,context=2")
    assert len(refused.value.problems) == 3


def test_rules_that_do_not_fit_the_mesh_are_refused():
    rules = Rules({Axis.TOKENS: (MeshAxis.CONTEXT, MeshAxis.CONTEXT)})
    sharding = AbstractSharding(abstract_mesh(MeshShape()), rules)
    with pytest.raises(MeshError, match="names a mesh axis twice"):
        plan_attention(AttentionKind.XLA, Spread.NONE, heads=1, sharding=sharding, platform="cpu")
