"""Transformers in ComfyUI's float8 files, built by torch: read as torch computes them, or refused."""

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from quantised_checkpoints import TRANSFORMER
from safetensors.torch import load_file, save_file

from qil_jax.cli import convert
from qil_jax.programs import ended
from qil_jax.weights import Checkpoint, WeightsError
from qil_jax.weights.comfy import read_comfy
from qil_jax.weights.tables.entries import Component
from tools.make_demo_checkpoint import write_checkpoint

E4M3 = torch.float8_e4m3fn
PREFIX = "model.diffusion_model."
Tensors = dict[str, torch.Tensor]
SENSITIVE = ("transformer_blocks.0.", "img_mod", "img_in", "txt_in", "proj_out", "time_text_embed", "norm_out")
Q = "transformer_blocks.1.attn.to_q"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    write_checkpoint(folder)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / TRANSFORMER).items()}
    save_file(tensors, folder / TRANSFORMER, metadata={"format": "pt"})
    return folder


def json_tensor(values: dict) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(values).encode()), dtype=torch.uint8)


def is_quantised(name: str, tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and not any(part in name for part in SENSITIVE)


def mixed(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Comfy-Org's fp8mixed, and the weights that it stands for: a scale per tensor, sensitive layers in bf16."""
    stored, meant = {}, {}
    for name, tensor in tensors.items():
        stored[PREFIX + name] = meant[name] = tensor
        if is_quantised(name, tensor):
            layer, scale = PREFIX + name.removesuffix(".weight"), tensor.float().abs().max() / 448
            elements = (tensor.float() / scale).to(E4M3)
            stored[PREFIX + name], stored[f"{layer}.weight_scale"] = elements, scale
            stored[f"{layer}.comfy_quant"] = json_tensor({"format": "float8_e4m3fn"})
            stored[f"{layer}.input_scale"] = torch.tensor(1.0)
            meant[name] = (elements.float() * scale).bfloat16()
    return stored, meant


def older(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """The same under the names of older files, with the formats in no place but an empty tensor."""
    stored, meant = mixed(tensors)
    renamed = {
        name.removeprefix(PREFIX).replace(".weight_scale", ".scale_weight").replace(".input_scale", ".scale_input"): x
        for name, x in stored.items()
        if not name.endswith(".comfy_quant")
    }
    return {**renamed, "scaled_fp8": torch.empty(2, dtype=E4M3)}, meant


def unscaled(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """A cast of all matrices without scales, those outside of the blocks too."""
    stored = {name: x.to(E4M3) if x.ndim == 2 else x for name, x in tensors.items()}
    return stored, {name: x.bfloat16() for name, x in stored.items()}


def by_row(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Scales per output channel, as a column."""
    stored, meant = mixed(tensors)
    name = f"{Q}.weight"
    scale = tensors[name].float().abs().amax(1, keepdim=True) / 448
    stored[PREFIX + name] = (tensors[name].float() / scale).to(E4M3)
    stored[f"{PREFIX}{Q}.weight_scale"] = scale
    meant[name] = (stored[PREFIX + name].float() * scale).bfloat16()
    return stored, meant


@pytest.mark.parametrize("style", [mixed, older, unscaled, by_row])
def test_a_file_becomes_a_checkpoint(style: Callable, base, tmp_path, capsys):
    original = load_file(base / TRANSFORMER)
    stored, meant = style(original)
    save_file(stored, tmp_path / "comfy.safetensors")
    words = ["dequantize", tmp_path / "comfy.safetensors", tmp_path / "new", "--base", base]
    assert ended(convert.main, [*map(str, words)]) == 0
    count = sum(x.dtype == E4M3 for name, x in stored.items() if name != "scaled_fp8")
    scaled = 0 if style is unscaled else count
    assert f"{count} weights in float8_e4m3fn, {scaled} of them with scales" in capsys.readouterr().out
    ours = load_file(tmp_path / "new" / TRANSFORMER)
    assert ours.keys() == meant.keys() and count >= 13
    for name, tensor in meant.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name
    changed = [name for name in ours if not torch.equal(ours[name], original[name])]
    assert len(changed) == count
    Checkpoint(tmp_path / "new").require_sound()
    for part in ("vae", "text_encoder"):
        for file in (base / part).iterdir():
            assert (tmp_path / "new" / part / file.name).read_bytes() == file.read_bytes()


def test_fp32_keeps_the_product_as_torch_rounds_it(base, tmp_path):
    original = load_file(base / TRANSFORMER)
    stored, _ = mixed(original)
    save_file(stored, tmp_path / "comfy.safetensors")
    words = ["dequantize", tmp_path / "comfy.safetensors", tmp_path / "new", "--base", base, "--dtype", "float32"]
    assert ended(convert.main, [*map(str, words)]) == 0
    ours = load_file(tmp_path / "new" / TRANSFORMER)
    expected = stored[f"{PREFIX}{Q}.weight"].float() * stored[f"{PREFIX}{Q}.weight_scale"]
    assert torch.equal(ours[f"{Q}.weight"], expected)
    first = "transformer_blocks.0.attn.to_q.weight"
    assert torch.equal(ours[first], original[first].float()), "blocks of one stack have one dtype"
    assert ours["img_in.weight"].dtype == torch.bfloat16


def test_formats_in_the_header_are_read(base, tmp_path):
    stored, _ = mixed(load_file(base / TRANSFORMER))
    table = Checkpoint(base)[Component.TRANSFORMER].table
    said = {"layers": {PREFIX + Q: {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}}}
    for values, sound in ((said, True), ({"layers": {PREFIX + Q: {"format": "nvfp4"}}}, False), ({"layers": 3}, False)):
        stored.pop(f"{PREFIX}{Q}.comfy_quant", None)
        save_file(stored, tmp_path / "comfy.safetensors", metadata={"_quantization_metadata": json.dumps(values)})
        if sound:
            read = read_comfy(tmp_path / "comfy.safetensors", table)
            assert read.scales[f"{Q}.weight"].dtype == np.float32
            assert read.dtypes[f"{Q}.weight"] == ml_dtypes.float8_e4m3fn
        else:
            with pytest.raises(WeightsError, match=r"nvfp4|layers must be an object"):
                read_comfy(tmp_path / "comfy.safetensors", table)


def convrot(tensors: Tensors) -> None:
    tensors[f"{PREFIX}{Q}.comfy_quant"] = json_tensor({"format": "float8_e4m3fn", "convrot": True})


@pytest.mark.parametrize(
    ("change", "complaints"),
    [
        (lambda t: t.pop(f"{PREFIX}{Q}.weight_scale"), [f"{Q} is said to be float8_e4m3fn, but lacks"]),
        (lambda t: t[f"{PREFIX}{Q}.weight_scale"].fill_(torch.nan), [f"the scale of {Q}.weight is no positive number"]),
        (lambda t: t[f"{PREFIX}{Q}.weight_scale"].fill_(0), [f"the scale of {Q}.weight is no positive number"]),
        (lambda t: t.update({f"{PREFIX}{Q}.weight_scale": torch.ones(5)}), ["float32 [5], not one float or one per"]),
        (lambda t: t.update({f"{PREFIX}{Q}.weight": torch.ones(64, 64)}), ["has a scale, but is not stored as float8"]),
        (lambda t: t.update({f"{PREFIX}{Q}.weight": torch.ones(4, 64, dtype=E4M3)}), ["[4, 64], the base asks for"]),
        (lambda t: t.update({f"{PREFIX}{Q}.weight": torch.ones(64, 64, dtype=torch.int8)}), ["dtype int8, supported"]),
        (convrot, [f"{Q} is quantised as", "only float8_e4m3fn with a scale is read"]),
        (lambda t: t.update({f"{PREFIX}{Q}.comfy_quant": torch.zeros(3, dtype=torch.uint8)}), ["is not JSON"]),
        (lambda t: t.update({f"{PREFIX}{Q}.convrot": torch.ones(3)}), [f"{Q}.convrot is not read"]),
        (lambda t: t.pop(f"{PREFIX}img_in.bias"), ["img_in.bias [64] is missing"]),
        (lambda t: t.update({"img_in.bias": torch.ones(64)}), ["some tensors have two names"]),
    ],
)
def test_other_files_are_refused_whole(change, complaints, base, tmp_path, capsys):
    stored, _ = mixed(load_file(base / TRANSFORMER))
    change(stored)
    stored[f"{PREFIX}unknown.weight"] = torch.ones(2)
    save_file(stored, tmp_path / "comfy.safetensors")
    words = ["dequantize", tmp_path / "comfy.safetensors", tmp_path / "new", "--base", base]
    assert ended(convert.main, [*map(str, words)]) == 2
    error = capsys.readouterr().err
    assert all(complaint in error for complaint in [*complaints, "unknown.weight is not read"]), error
    assert not (tmp_path / "new").exists()


def test_a_file_needs_a_base(tmp_path, capsys):
    assert ended(convert.main, ["dequantize", "x.safetensors", str(tmp_path / "new")]) == 2
    assert "--base: goes with a safetensors file" in capsys.readouterr().err
