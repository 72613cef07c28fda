"""Quantised checkpoints whose scales, elements or mark are wrong: refused in one report, before anything is loaded."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file

from qil_jax.inference.pipeline import Pipeline
from qil_jax.models.quantised import Quantisation
from qil_jax.weights import Checkpoint, StructureError
from qil_jax.weights.convert import to_orbax
from qil_jax.weights.quantise import quantise_checkpoint
from tools.make_demo_checkpoint import write_checkpoint

FILE = "transformer/diffusion_pytorch_model.safetensors"
Q, K, V = (f"transformer_blocks.0.attn.to_{part}.weight" for part in "qkv")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_checkpoint(folder / "plain")
    quantise_checkpoint(folder / "plain", folder / "quantised", Quantisation.INT8)
    assert Checkpoint(folder / "quantised").problems == []
    return folder / "quantised"


@pytest.fixture
def checkpoint(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "checkpoint"))


def change(folder: Path, edit) -> None:
    tensors = {name: tensor.copy() for name, tensor in load_file(folder / FILE).items()}
    edit(tensors)
    save_file(tensors, folder / FILE, metadata={"format": "pt"})


def test_all_bad_scales_are_in_one_report(checkpoint):
    def edit(tensors):
        tensors[f"{Q}_scale"][:2] = np.nan
        tensors[f"{K}_scale"][0] = 0
        tensors[f"{V}_scale"] = tensors[f"{V}_scale"][:-1]
        tensors["transformer_blocks.1.attn.to_q.weight_scale"][0] = -1
        tensors["transformer_blocks.1.attn.to_k.weight_scale"][0] = np.inf
        del tensors["transformer_blocks.1.attn.to_v.weight_scale"]
        tensors["transformer_blocks.0.img_mod.1.weight_scale"] = np.ones(5, bfloat16)

    change(checkpoint, edit)
    with pytest.raises(StructureError) as error:
        Pipeline.load(checkpoint)
    text = str(error.value)
    width = len(load_file(checkpoint / FILE)[f"{Q}_scale"])
    assert f"{Q}_scale: 2 of {width} scales are no positive numbers" in text
    assert f"{K}_scale: 1 of {width} scales are no positive numbers" in text
    assert f"{V}_scale has shape [{width - 1}], config.json asks for [{width}]" in text
    assert f"transformer_blocks.1.attn.to_q.weight_scale: 1 of {width}" in text
    assert f"transformer_blocks.1.attn.to_k.weight_scale: 1 of {width}" in text
    assert f"transformer_blocks.1.attn.to_v.weight_scale [{width}] is missing" in text
    assert "transformer_blocks.0.img_mod.1.weight_scale has shape [5]" in text
    assert len(error.value.problems) == 8, "one for each, and the count of tensors"


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda t: t.update({Q: t[Q].astype(np.float32)}), f"{Q} has dtype float32, supported are int8"),
        (lambda t: t.update({f"{Q}_scale": t[f"{Q}_scale"].astype(bfloat16)}), "bfloat16, supported are float32"),
        (lambda t: t.update({"img_in.weight": t["img_in.weight"].astype(np.int8)}), "img_in.weight has dtype int8"),
        (lambda t: t.update({"img_in.weight_scale": np.ones(4, np.float32)}), "img_in.weight_scale [4] is not in the"),
    ],
)
def test_other_dtypes_and_names_are_refused(edit, complaint, checkpoint):
    change(checkpoint, edit)
    assert complaint in "\n".join(Checkpoint(checkpoint).problems)


@pytest.mark.parametrize(
    ("mark", "complaint"),
    [
        (None, "has dtype int8, supported are bfloat16, float16, float32"),
        ({"quant_method": "qil_weight_only", "dtype": "fp8"}, "has dtype int8, supported are float8_e4m3fn"),
        ({"quant_method": "qil_weight_only", "dtype": "int4"}, "is not read: give a checkpoint of full precision"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "is not read: give a checkpoint of full precision"),
        ("int8", "is not read: give a checkpoint of full precision"),
    ],
)
@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_another_mark_is_refused(component, mark, complaint, checkpoint):
    file = checkpoint / component / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": mark}))
    problems = "\n".join(Checkpoint(checkpoint).problems)
    assert complaint in problems and component in problems


def test_the_vae_is_never_quantised(checkpoint):
    file = checkpoint / "vae" / "config.json"
    mark = {"quant_method": "qil_weight_only", "dtype": "int8"}
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": mark}))
    assert any("quantization_config" in problem for problem in Checkpoint(checkpoint).problems)


@pytest.mark.full
def test_scales_of_orbax_are_checked(sound, tmp_path):
    to_orbax(sound, tmp_path / "orbax")
    assert Checkpoint(tmp_path / "orbax").problems == []
    params = tmp_path / "orbax/transformer/params"
    array = params / "backbone.blocks.image.q.scale"
    chunks = sorted(path for path in array.iterdir() if not path.name.startswith("."))
    values = np.frombuffer(chunks[0].read_bytes(), np.float32).copy()
    values[1] = np.nan
    chunks[0].write_bytes(values.tobytes())
    shutil.rmtree(params / "modulation.image.scale")
    problems = "\n".join(Checkpoint(tmp_path / "orbax").problems)
    assert f"{Q}_scale: 1 of " in problems and "modulation/image/scale" in problems and "is missing" in problems
