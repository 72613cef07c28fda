"""Quantised checkpoints: nothing left out, bit-exact on every way, as torch computes them."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from buckets import small_bucket as small_bucket
from diffusers import QwenImageTransformer2DModel
from flax import nnx
from PIL import Image
from quantised_checkpoints import ELEMENTS, TEXT_ENCODER, TRANSFORMER, dequantised_by_torch
from safetensors.torch import load_file, save_file

from qil_jax.cli import convert, validate
from qil_jax.inference.checkpoint import LayeredCheckpoint
from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import Request, Settings
from qil_jax.mesh import INFERENCE_RULES, MeshShape, Sharding, make_mesh, single_device_mesh
from qil_jax.models.lora import linear_maps
from qil_jax.models.paths import slashed
from qil_jax.models.quantised import Quantisation, quantised
from qil_jax.programs import ended
from qil_jax.weights import Checkpoint, Component, LoRA, LoRAError, LowRank, TextEncoderPart
from qil_jax.weights.convert import to_diffusers, to_orbax
from qil_jax.weights.quantise import quantise_checkpoint
from qil_jax.weights.tables import table_of
from qil_jax.weights.tables.entries import targets
from tools.bench.convert import unlike
from tools.make_demo_checkpoint import write_checkpoint

HOWS = tuple(Quantisation)
BLOCK_MAPS = 2 * 14
"""Linear maps in the blocks of the tiny transformer."""
BLOCK_WEIGHTS = 2 * 2 * (4 + 8 + 6) * 64**2


def run(*words: object) -> int:
    return ended(convert.main, [*map(str, words)])


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "checkpoint"
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module", params=HOWS)
def made(request, plain) -> tuple[Quantisation, Path]:
    folder = plain.parent / request.param.value
    assert run("quantize", plain, folder, "--dtype", request.param.value) == 0
    return request.param, folder


@pytest.fixture(scope="module")
def plain_orbax(plain) -> Path:
    to_orbax(plain, plain.parent / "orbax")
    return plain.parent / "orbax"


REQUEST = Request(image=Image.new("RGB", (64, 48), "red"), layers=1, prompt="a cat")


def decomposed(folder: Path) -> np.ndarray:
    return Pipeline.load(folder).decompose([REQUEST], Settings(steps=1))[0].layered.layers.astype(int)


@pytest.fixture(scope="module")
def plain_layers(plain, small_bucket) -> np.ndarray:
    return decomposed(plain)


def on(mesh, folder: Path, part, dtype=None):
    return Checkpoint(folder).load(part, Sharding(mesh, INFERENCE_RULES), dtype=dtype)


@pytest.mark.full
def test_no_block_stays_as_it_was(made):
    """The bytes of one-byte elements, in the file and in the loaded module, are all weights of the blocks."""
    how, folder = made
    stored = load_file(folder / TRANSFORMER)
    small = [tensor for tensor in stored.values() if tensor.dtype == ELEMENTS[how.value]]
    assert len(small) == BLOCK_MAPS and sum(tensor.numel() for tensor in small) == BLOCK_WEIGHTS
    assert not [n for n, x in stored.items() if "transformer_blocks" in n and x.ndim > 1 and x.element_size() > 1]
    model = on(single_device_mesh(), folder, Component.TRANSFORMER, jnp.bfloat16)
    arrays = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(x.nbytes for x in arrays if x.dtype == how.dtype) == BLOCK_WEIGHTS
    wide = {path: m.kernel.dtype for path, m in linear_maps(model).items() if m.kernel.dtype != how.dtype}
    assert len(wide) == 6 and {*wide.values()} == {jnp.dtype(jnp.bfloat16)}
    scales = [m.scale for m in linear_maps(model).values() if m.scale is not None]
    assert len(scales) == 14 and {scale.dtype for scale in scales} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("component", "part", "file"),
    [
        (Component.TRANSFORMER, Component.TRANSFORMER, TRANSFORMER),
        (Component.TEXT_ENCODER, TextEncoderPart.VISION_LANGUAGE, TEXT_ENCODER),
    ],
)
@pytest.mark.full
def test_what_is_read_is_what_was_written(made, plain, component, part, file):
    """Every tensor is in the loaded module, bit by bit."""
    how, folder = made
    stored, original = load_file(folder / file), load_file(plain / file)
    model = on(single_device_mesh(), folder, part)
    flat = {slashed(path): np.asarray(x[...]) for path, x in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    config = json.loads((folder / component / "config.json").read_text())
    bits = lambda x: x.contiguous().view(torch.uint8).numpy()
    wanted = targets(table_of(component, config))
    assert flat.keys() == wanted.keys() and {e.name for t in wanted.values() for e in t.entries} == stored.keys()
    for target in wanted.values():
        parts = flat[target.path] if target.entries[0].block is not None else flat[target.path][None]
        for entry, part in zip(target.entries, parts, strict=True):
            tensor = np.ascontiguousarray(entry.transform.backward(part, entry.shape))
            assert np.array_equal(tensor.view(np.uint8).reshape(-1), bits(stored[entry.name]).reshape(-1)), entry.name
            if entry.dtype is None:
                assert torch.equal(stored[entry.name], original[entry.name])
            elif not entry.name.endswith("_scale"):
                elements, scale = quantised(original[entry.name].numpy(), how, axis=-1)
                assert elements.tobytes() == bits(stored[entry.name]).tobytes()
                assert np.array_equal(scale, stored[entry.name + "_scale"].numpy())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.full
def test_full_precision_is_torchs_own(made, dtype, tmp_path):
    _, folder = made
    assert run("dequantize", folder, tmp_path / "back", "--dtype", dtype) == 0
    for file in (TRANSFORMER, TEXT_ENCODER):
        expected, ours = dequantised_by_torch(folder / file, getattr(torch, dtype)), load_file(tmp_path / "back" / file)
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    QwenImageTransformer2DModel.from_pretrained(tmp_path / "back" / "transformer")
    assert not (tmp_path / "back/transformer/quantization.json").exists()


@pytest.mark.full
def test_orbax_and_back_is_bit_exact(made, tmp_path):
    _, folder = made
    to_orbax(folder, tmp_path / "orbax")
    Checkpoint(tmp_path / "orbax").require_sound()
    to_diffusers(tmp_path / "orbax", tmp_path / "back")
    assert unlike(folder, tmp_path / "back") == []
    assert run("dequantize", tmp_path / "orbax", tmp_path / "a") == run("dequantize", folder, tmp_path / "b") == 0
    assert unlike(tmp_path / "a", tmp_path / "b") == []
    model, same = (on(single_device_mesh(), each, Component.TRANSFORMER) for each in (folder, tmp_path / "orbax"))
    for a, b in zip(*(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (model, same)), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.full
def test_orbax_is_quantised_as_the_release(made, plain_orbax, tmp_path):
    how, folder = made
    quantise_checkpoint(plain_orbax, tmp_path / "quantised", how)
    assert unlike(folder, tmp_path / "quantised") == []


@pytest.mark.full
def test_two_devices_hold_what_one_holds(made):
    how, folder = made
    one = on(single_device_mesh(), folder, TextEncoderPart.VISION_LANGUAGE)
    two = on(make_mesh(MeshShape.parse("tensor=2"), jax.devices()[:2]), folder, TextEncoderPart.VISION_LANGUAGE)
    kernel = two.language.layers.up.kernel[...]
    assert kernel.dtype == how.dtype and {s.data.shape for s in kernel.addressable_shards} == {(2, 64, 64)}
    assert {s.data.shape for s in two.language.layers.up.scale[...].addressable_shards} == {(2, 64)}
    for a, b in zip(*(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (one, two)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert {m.kernel.dtype for m in linear_maps(two.visual).values()} == {np.dtype(np.float32)}
    x, mask = one.language.embed(jnp.arange(8)[None]), jnp.ones((1, 8), bool)
    expected, ours = (np.asarray(jax.jit(lambda x, mask, m=m: m.language(x, mask))(x, mask)) for m in (one, two))
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-5)


def test_the_report_holds_the_errors_that_torch_finds(made, plain):
    how, folder = made
    report = json.loads((folder / "transformer/quantization.json").read_text())
    back, original = dequantised_by_torch(folder / TRANSFORMER, torch.float32), load_file(plain / TRANSFORMER)
    found = {(block, kind): e for block, kinds in report["relative_errors"].items() for kind, e in kinds.items()}
    assert len(found) == BLOCK_MAPS
    for (block, kind), error in found.items():
        name = f"transformer_blocks.{block}.{kind}.weight"
        difference, weights = (back[name] - original[name]).double(), original[name].double()
        assert error["rms"] == pytest.approx(float(difference.norm() / weights.norm()), rel=1e-4)
        assert error["max"] == pytest.approx(float(difference.abs().max() / weights.abs().max()), rel=1e-4)
        assert error["rms"] < (0.01 if how is Quantisation.INT8 else 0.03)
    assert report["bytes"]["quantised"] == BLOCK_WEIGHTS and report["dtype"] == how.value
    assert "img_in.weight" in report["left"] and "proj_out.weight" in report["left"]
    stored = load_file(folder / TRANSFORMER).values()
    assert report["bytes"]["after"] == sum(tensor.nbytes for tensor in stored)


@pytest.mark.full
def test_the_size_in_memory_is_that_of_the_loaded_arrays(made):
    _, folder = made
    for dtype, itemsize in ((None, 4), ("bfloat16", 2)):
        size = LayeredCheckpoint.open(folder, dtype=dtype).size
        models = [on(single_device_mesh(), folder, component, dtype) for component in Component]
        loaded = sum(x.nbytes for model in models for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
        assert size.parameters == loaded
        assert size.itemsize == itemsize


@pytest.mark.full
def test_pictures_are_decomposed(made, plain_layers):
    layers = decomposed(made[1])
    assert np.abs(layers - plain_layers).mean() < 4 and not np.array_equal(layers, plain_layers)


def test_it_is_another_checkpoint(made, plain):
    _, folder = made
    assert Checkpoint(folder).fingerprint() != Checkpoint(plain).fingerprint()
    assert ended(validate.main, [str(folder), "--values"]) == 0


def test_diffusers_refuses_it(made):
    with pytest.raises(ValueError, match="qil_weight_only"):
        QwenImageTransformer2DModel.from_pretrained(made[1] / "transformer")


def test_one_component_alone(plain, tmp_path):
    assert run("quantize", plain, tmp_path / "q", "--dtype", "int8", "--components", "text_encoder") == 0
    assert (tmp_path / "q" / TRANSFORMER).read_bytes() == (plain / TRANSFORMER).read_bytes()
    stored, original = load_file(tmp_path / "q" / TEXT_ENCODER), load_file(plain / TEXT_ENCODER)
    small = {name for name, tensor in stored.items() if tensor.dtype == torch.int8}
    assert small == {n for n, x in original.items() if "layers" in n and "visual" not in n and x.ndim == 2}
    assert run("quantize", tmp_path / "q", tmp_path / "both", "--dtype", "fp8", "--components", "transformer") == 0
    Checkpoint(tmp_path / "both").require_sound()


def test_shards_are_read(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "shards")
    (tmp_path / "shards" / TRANSFORMER).unlink()
    QwenImageTransformer2DModel.from_pretrained(plain / "transformer").save_pretrained(
        tmp_path / "shards/transformer", max_shard_size="300KB"
    )
    assert len([*(tmp_path / "shards/transformer").glob("*.safetensors")]) > 2
    for name, folder in (("one", plain), ("other", tmp_path / "shards")):
        quantise_checkpoint(folder, tmp_path / name, Quantisation.INT8, components=[Component.TRANSFORMER])
    assert unlike(tmp_path / "one", tmp_path / "other") == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("quantize", "{quantised}", "{new}", "--dtype", "int8"), "quantised to int8 already"),
        (("quantize", "{plain}", "{plain}", "--dtype", "int8"), "exists; give another folder"),
        (("quantize", "{plain}", "{new}", "--dtype", "int8", "--components", "vae"), "vae: give one or several of"),
        (("dequantize", "{plain}", "{new}"), "no component is quantised"),
        (("dequantize", "{quantised}", "{new}", "--base", "{plain}"), "--base: is for a file"),
    ],
)
def test_what_makes_no_sense_is_refused(words, complaint, plain, tmp_path, capsys):
    if not (plain.parent / "int8").exists():
        quantise_checkpoint(plain, plain.parent / "int8", Quantisation.INT8)
    places = {"plain": plain, "quantised": plain.parent / "int8", "new": tmp_path / "new"}
    assert run(*(word.format(**places) for word in words)) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_refused(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "nan")
    tensors = load_file(plain / TRANSFORMER)
    tensors["transformer_blocks.1.attn.to_k.weight"][3, 4] = torch.nan
    save_file(tensors, tmp_path / "nan" / TRANSFORMER, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"transformer_blocks\.1\.attn\.to_k\.weight holds NaN or infinite values"):
        quantise_checkpoint(tmp_path / "nan", tmp_path / "new", Quantisation.FP8)
    assert not (tmp_path / "new").exists() and len([*tmp_path.iterdir()]) == 1


@pytest.mark.full
def test_loras_are_refused(made):
    change = LowRank(a=np.ones((64, 1), np.float32), b=np.ones((1, 64), np.float32), scale=1.0)
    lora = LoRA(changes={"transformer_blocks.0.attn.to_q": change}, origin={})
    sharding = Sharding(single_device_mesh(), INFERENCE_RULES)
    with pytest.raises(LoRAError, match="cannot be added to a quantised transformer"):
        Checkpoint(made[1]).load(Component.TRANSFORMER, sharding, loras=[(lora, 1.0)])
    with pytest.raises(LoRAError, match="cannot be added to a quantised transformer"):
        LayeredCheckpoint.open(made[1], loras=[(made[1] / "lora.safetensors", 1.0)])
