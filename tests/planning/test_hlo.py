"""What is read from compiled programs, against programs whose collectives, bytes and products are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qil_jax.planning.collectives import CollectiveKind, collectives
from qil_jax.planning.hbm import hbm_bytes
from qil_jax.planning.hlo import Module, parse
from qil_jax.planning.kernels import kernels
from qil_jax.planning.products import product_flops
from qil_jax.planning.walk import executed

LENGTH = 5
ROWS, WIDTH = 8, 16
"""Of the part of one of eight devices, a mesh of 2 x 4."""


def rounds(x):
    """Five rounds of four collectives and a product, and a reduce-scatter after them."""

    def step(x, _):
        gathered = lax.all_gather(x, "b", axis=0, tiled=True)
        summed = lax.psum(gathered, "a")
        swapped = lax.all_to_all(summed, "b", split_axis=0, concat_axis=1, tiled=True)
        product = swapped[:, :WIDTH] @ jnp.ones((WIDTH, WIDTH))
        return x + 0.1 * lax.ppermute(product, "b", [(i, (i + 1) % 4) for i in range(4)]), None

    x, _ = lax.scan(step, x, None, length=LENGTH)
    return x + lax.psum_scatter(jnp.tile(x, (4, 1)), "b", scatter_dimension=0, tiled=True)


@pytest.fixture(scope="module")
def program() -> Module:
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 4), ("a", "b"))
    spec = PartitionSpec(("a", "b"), None)
    mapped = jax.shard_map(rounds, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    shape = jax.ShapeDtypeStruct((8 * ROWS, WIDTH), jnp.float32, sharding=NamedSharding(mesh, spec))
    return parse(jax.jit(mapped).lower(shape).compile().as_text() or "")


def test_collectives_of_a_loop(program):
    found = {c.kind: c for c in collectives(program, 8)}
    assert len(collectives(program, 8)) == len(found) == 5
    whole, mesh = 4 * ROWS * WIDTH * 4, {"a": 2, "b": 4}
    along_b = ((0, 1, 2, 3), (4, 5, 6, 7))
    expected = {
        CollectiveKind.ALL_GATHER: (whole, along_b, LENGTH, ("b",), whole * 3 / 4),
        CollectiveKind.ALL_REDUCE: (whole, ((0, 4), (1, 5), (2, 6), (3, 7)), LENGTH, ("a",), whole),
        CollectiveKind.ALL_TO_ALL: (whole, along_b, LENGTH, ("b",), whole * 3 / 4),
        CollectiveKind.REDUCE_SCATTER: (whole, along_b, 1, ("b",), whole * 3 / 4),
    }
    for kind, (size, groups, count, axes, sent) in expected.items():
        collective = found[kind]
        assert (collective.bytes, collective.groups, collective.count) == (size, groups, count)
        assert (collective.axes(mesh), collective.sent) == (axes, sent)
    permute = found[CollectiveKind.PERMUTE]
    assert (permute.bytes, permute.count, permute.axes(mesh)) == (whole / 4, LENGTH, ("b",))
    assert {(0, 1), (3, 0), (7, 4)} < {*permute.groups} and len(permute.groups) == 8


def test_products_of_a_loop(program):
    assert product_flops(program) == LENGTH * 2 * ROWS * WIDTH * WIDTH


def test_a_loop_without_a_count_is_refused():
    module = jax.jit(lambda x: lax.while_loop(lambda x: jnp.sum(x) < 7.0, lambda x: x + 1, x))
    text = module.lower(jax.ShapeDtypeStruct((4,), jnp.float32)).compile().as_text() or ""
    with pytest.raises(ValueError, match="compares with no constant"):
        list(executed(parse(text)))


TPU = """HloModule m, is_scheduled=true

%slices (p0: bf16[60,128,256], p1: s32[], p2: bf16[64,128]) -> bf16[64,256] {
  %p0 = bf16[60,128,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %cut = bf16[1,128,256]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,128,256}
  %flat = bf16[128,256]{1,0:T(8,128)(2,1)} bitcast(%cut)
  %p2 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(2)
  ROOT %dot = bf16[64,256]{1,0:T(8,128)(2,1)} convolution(%p2, %flat), dim_labels=bf_io->bf
}

%start (p: bf16[64,128]) -> (bf16[64,128], bf16[256,128], s32[2]) {
  %p = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[256,128]{1,0} all-gather(%p), channel_id=1, replica_groups=mesh['x'=2,'y'=4] {'y'},
    dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %c = (bf16[64,128]{1,0}, bf16[256,128]{1,0}, s32[2]{0:S(4)}) custom-call(%all-gather.1),
    custom_call_target="AsyncCollectiveStart"
}

%carry (p: bf16[64,128], q: bf16[256,128]) -> (bf16[64,128], bf16[256,128]) {
  %p.1 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %q = bf16[256,128]{1,0:T(8,128)(2,1)} parameter(1)
  %all-gather.2 = bf16[256,128]{1,0} all-gather(%p.1), channel_id=1, replica_groups=mesh['x'=2,'y'=4] {'y'},
    dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %t = (bf16[64,128]{1,0}, bf16[256,128]{1,0}) tuple(%p.1, %q)
}

%condition (s: (s32[], bf16[64,128])) -> pred[] {
  %s = (s32[]{:T(128)}, bf16[64,128]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %n = s32[]{:T(128)} constant(60)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%body (s: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %s.1 = (s32[]{:T(128)}, bf16[64,128]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%s.1), index=1
  %kernels = bf16[60,128,256]{2,1,0:T(8,128)(2,1)} custom-call(), custom_call_target="Weights"
  %y = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} fusion(%kernels, %i.1, %x), kind=kOutput, calls=%slices
  %begun = (bf16[64,128]{1,0}, bf16[256,128]{1,0}, s32[2]{0:S(4)}) fusion(%x), kind=kCustom, calls=%start
  %a = bf16[64,128]{1,0} get-tuple-element(%begun), index=0
  %b = bf16[256,128]{1,0} get-tuple-element(%begun), index=1
  %carried = (bf16[64,128]{1,0}, bf16[256,128]{1,0}) fusion(%a, %b), kind=kCustom, calls=%carry
  ROOT %out = (s32[]{:T(128)}, bf16[64,128]{1,0}) tuple(%i.1, %x)
}

ENTRY %main (x: bf16[64,128]) -> (s32[], bf16[64,128]) {
  %x.1 = bf16[64,128]{1,0} parameter(0)
  %first = s32[]{:T(128)} constant(10)
  %state = (s32[]{:T(128)}, bf16[64,128]{1,0}) tuple(%first, %x.1)
  ROOT %loop = (s32[]{:T(128)}, bf16[64,128]{1,0}) while(%state), condition=%condition, body=%body
}
"""
"""As XLA prints a program for TPUs: a loop of 60 from 10, a slice of stacked kernels, a result on the chip, and an
asynchronous collective that is printed again in the fusion that carries it."""


def test_a_program_for_tpus():
    (collective,) = collectives(parse(TPU), 8)
    assert (collective.kind, collective.count, collective.bytes) == ("all-gather", 50, 256 * 128 * 2)
    assert collective.groups == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert product_flops(parse(TPU)) == 50 * 2 * 64 * 128 * 256
    stack, kernel, tokens = 60 * 128 * 256 * 2, 128 * 256 * 2, 64 * 128 * 2
    gathered = tokens + 256 * 128 * 2
    assert hbm_bytes(parse(TPU)) == 50 * (stack + kernel + 4 + tokens + gathered)


SPLASH = """HloModule m

ENTRY %main (q: bf16[6,10240,128], k: bf16[6,10240,128], v: bf16[6,10240,128]) -> bf16[6,10240,128] {
  %q = bf16[6,10240,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[6,10240,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  %v = bf16[6,10240,128]{2,1,0:T(8,128)(2,1)S(1)} parameter(2)
  ROOT %splash_mha_fwd_segmented_no_residuals.1 = bf16[6,10240,128]{2,1,0} custom-call(%q, %k, %v),
    custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512, \\"block_kv\\": 1024}"
}}, metadata={op_name="pallas_call"}
}
"""
"""A Pallas call, which spans several lines; v lies on the chip."""


def test_splash_attention_by_its_operands():
    (kernel,) = kernels(parse(SPLASH))
    assert kernel.flops == 4 * 6 * 10240**2 * 128
    assert kernel.repeated == 19 * 6 * 10240 * 128 * 2


CUDNN = """HloModule m

ENTRY %main (q: bf16[1,10240,6,128], k: bf16[1,512,6,128], v: bf16[1,512,6,128]) -> bf16[1,6,10240,128] {
  %q = bf16[1,10240,6,128]{3,2,1,0} parameter(0)
  %k = bf16[1,512,6,128]{3,2,1,0} parameter(1)
  %v = bf16[1,512,6,128]{3,2,1,0} parameter(2)
  ROOT %f = (bf16[1,6,10240,128]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %v), custom_call_target="__cudnn$fmhaSoftmax"
}
"""


def test_cudnn_attention_by_its_operands():
    (kernel,) = kernels(parse(CUDNN))
    assert kernel.flops == 4 * 6 * 10240 * 512 * 128 and kernel.repeated == 0


def test_another_kernel_has_no_flops():
    (kernel,) = kernels(parse(SPLASH.replace("splash_mha_fwd", "other")))
    assert kernel.flops is None and kernel.name.startswith("other")


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no entry"):
        parse("HloModule m\n")
