"""Which numbers are bf16 and which fp32 with bf16 parameters, by the traced programs (docs/specification.md, 4)."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sizes import TEXT, TRANSFORMER, VAE, VISION

from qil_jax.models.vld_mmdit import ModulationTable, TokenLayout
from qil_jax.weights import Architecture, Component, TextEncoderPart

WIDE = ("exp", "rsqrt", "sqrt", "cos", "sin")
"""Softmax, norms, rotary embedding: all that these primitives are used for here, beside the sinusoid of the level."""
PRODUCTS = ("dot_general", "conv_general_dilated")
BF16, FP32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a program, those of its inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def dtypes(jaxpr: Any, names: tuple[str, ...]) -> dict[str, set[Any]]:
    """What each of these primitives is given."""
    found: dict[str, set[Any]] = {}
    for equation in equations(jaxpr):
        name = equation.primitive.name
        if name in names:
            floats = {v.aval.dtype for v in equation.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)}
            found.setdefault(name, set()).update(floats)
    return found


def carried(jaxpr: Any, length: int) -> set[Any]:
    """What the scan over so many blocks hands from block to block."""
    scans = [e for e in equations(jaxpr) if e.primitive.name == "scan" and e.params["length"] == length]
    assert len(scans) == 1
    body = getattr(scans[0].params["jaxpr"], "jaxpr", scans[0].params["jaxpr"])
    pairs = zip(scans[0].outvars, body.outvars, strict=True)  # what is collected from block to block has an axis more
    found = {whole.aval.dtype for whole, one in pairs if whole.aval.shape == one.aval.shape}
    assert found
    return found


def traced(component: Component | TextEncoderPart, config: dict, call: Any, *arguments: Any) -> tuple[Any, set[Any]]:
    """The program of a model whose parameters are bf16, and the dtypes of what it gives."""
    kind = component if isinstance(component, Component) else Component.TEXT_ENCODER
    graph, state = nnx.split(Architecture(kind, config).abstract(component))
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, BF16), state)
    program = jax.make_jaxpr(lambda state, *given: call(nnx.merge(graph, state), *given))(state, *arguments)
    return program.jaxpr, {aval.dtype for aval in program.out_avals}


def of(shape: tuple[int, ...], dtype: Any = BF16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def test_transformer():
    """Modulation and backbone by themselves, as inference runs them: the table goes from the one to the other."""
    tokens, words, d = 24, 7, TRANSFORMER["num_attention_heads"] * TRANSFORMER["attention_head_dim"]
    levels = of((2,), FP32), of((2,), jnp.dtype(jnp.int32))
    program, out = traced(Component.TRANSFORMER, TRANSFORMER, lambda m, *a: m.modulation(*a), *levels)
    assert out == {BF16}
    assert dtypes(program, (*WIDE, *PRODUCTS)) == {"cos": {FP32}, "sin": {FP32}, "dot_general": {BF16}}

    places = lambda *shape: np.ones(shape, np.int32)
    layout = TokenLayout(
        image_positions=places(2, tokens, 3),
        text_positions=places(2, words, 3),
        image_segments=places(2, tokens),
        text_segments=places(2, words),
    )
    per_block = of((TRANSFORMER["num_layers"], 2, 6, d))

    def run(model: Any, image: jax.Array, text: jax.Array, blocks: jax.Array, last: jax.Array) -> jax.Array:
        return model.backbone(image, text, layout, ModulationTable(image=blocks, text=blocks, out=last))

    image, text = of((2, tokens, TRANSFORMER["in_channels"])), of((2, words, TRANSFORMER["joint_attention_dim"]))
    program, out = traced(Component.TRANSFORMER, TRANSFORMER, run, image, text, per_block, of((2, 2, d)))
    assert out == {BF16}
    assert carried(program, TRANSFORMER["num_layers"]) == {BF16}
    expected = {name: {FP32} for name in ("exp", "rsqrt", "cos", "sin")} | {"dot_general": {BF16}}
    assert dtypes(program, (*WIDE, *PRODUCTS)) == expected


def test_language_model():
    config = {**TEXT, "vision_config": {}}
    ids, mask = of((2, 32), jnp.dtype(jnp.int32)), of((2, 32), jnp.dtype(bool))
    program, out = traced(Component.TEXT_ENCODER, config, lambda m, *a: m(*a), ids, mask)
    assert out == {BF16}
    assert carried(program, TEXT["num_hidden_layers"]) == {BF16}
    expected = {name: {FP32} for name in ("exp", "rsqrt", "cos", "sin")} | {"dot_general": {BF16}}
    assert dtypes(program, (*WIDE, *PRODUCTS)) == expected


def test_vision_tower():
    """Pictures arrive in fp32, from the processor."""
    config = {**TEXT, "vision_config": {**VISION, "depth": 3, "out_hidden_size": TEXT["hidden_size"]}}
    patches, grids = of((2, 16, 1176), FP32), of((2, 2), jnp.dtype(jnp.int32))
    program, out = traced(TextEncoderPart.VISION_LANGUAGE, config, lambda m, *a: m.visual(*a), patches, grids)
    assert out == {BF16}
    assert carried(program, 3) == {BF16}
    expected = {name: {FP32} for name in ("exp", "rsqrt", "cos", "sin")} | {"dot_general": {BF16}}
    assert dtypes(program, (*WIDE, *PRODUCTS)) == expected


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_rgba_vae(way):
    if way == "encode":
        program, out = traced(Component.VAE, VAE, lambda m, x: m.encode(x).mean, of((1, 32, 24, 4)))
    else:
        program, out = traced(Component.VAE, VAE, lambda m, z: m.decode(m.denormalise(z)), of((1, 4, 3, VAE["z_dim"])))
    assert out == {BF16}
    expected = {"exp": {FP32}, "sqrt": {FP32}} | {name: {BF16} for name in PRODUCTS}
    assert dtypes(program, (*WIDE, *PRODUCTS)) == expected
