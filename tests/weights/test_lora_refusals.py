"""LoRA files that are refused: by one error, before anything is computed, which names the keys and says what to do."""

import json
import pickle
import re

import ml_dtypes
import numpy as np
import pytest
from loras import block_modules, random_lora, tensors_of, write_layout
from safetensors.numpy import save_file

from qil_jax.weights import Component, LoRAError, read_lora
from qil_jax.weights.released import CONFIGS
from qil_jax.weights.tables import table_of

SMALL = {**CONFIGS[Component.TRANSFORMER], "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
SMALL |= {"axes_dims_rope": [4, 6, 6], "joint_attention_dim": 48}
TABLE = table_of(Component.TRANSFORMER, SMALL)
MODULE = "transformer_blocks.0.attn.to_q"


def refusal(file, tensors=None, metadata=None) -> str:
    if tensors is not None:
        save_file(tensors, file, metadata=metadata)
    with pytest.raises(LoRAError) as caught:
        read_lora(file, TABLE)
    assert str(file) in str(caught.value)
    return str(caught.value)


def test_a_lora_of_another_model(tmp_path):
    """All keys count, the first ten are named."""
    other = table_of(Component.TRANSFORMER, {**SMALL, "num_layers": 4})
    lora = random_lora(other, [*block_modules(0), *block_modules(3)])
    message = refusal(write_layout(tmp_path / "a.safetensors", lora, "lightning"))
    assert "42 of its 84 keys cannot be used; give a LoRA that was trained for Qwen-Image-Layered" in message
    named = re.findall(r"\n    transformer_blocks\.3\.\S+: belongs to no linear map of this transformer", message)
    assert len(named) == 10 and "... and 32 more" in message


def test_a_lora_of_another_width(tmp_path):
    other = table_of(Component.TRANSFORMER, {**SMALL, "num_attention_heads": 4})
    message = refusal(write_layout(tmp_path / "a.safetensors", random_lora(other, [MODULE]), "diffusers"))
    assert f"transformer.{MODULE}.lora_A.weight: has shape [4, 64], and [4, 32] is needed" in message
    assert f"transformer.{MODULE}.lora_B.weight: has shape [64, 4], and [32, 4] is needed" in message


ODD = {
    f"{MODULE}.dora_scale": "belongs to a DoRA, which is not read",
    f"{MODULE}.lora_magnitude_vector": "belongs to a DoRA",
    f"transformer.{MODULE}.lora_B.bias": "is a bias, which is not read",
    "text_encoder.layers.0.q.lora_A.weight": "belongs to a text encoder",
    "lora_te_text_model_q.lora_down.weight": "belongs to a text encoder",
    "lora_unet_double_blocks_0_img_attn.lora_down.weight": "belongs to no linear map",
    "transformer.norm_out.norm.lora_A.weight": "belongs to no linear map",
    "txt_norm.lora_A.weight": "belongs to no linear map",
    "time_text_embed.addition_t_embedding.lora_A.weight": "belongs to no linear map",
    f"base_model.model.{MODULE}.lora_A.weight": "is one of two LoRAs",
    f"{MODULE}.weight": "belongs to no linear map",
    f"lycoris_{MODULE.replace('.', '_')}.lokr_w1": "is a LoKr, which is not read; give a LoRA",
    f"diffusion_model.{MODULE}.hada_w1_a": "is a LoHa, which is not read; give a LoRA",
    "diffusion_model.txt_norm.diff": "holds whole differences of weights (.diff), which are not read",
    "": "has no readable name",
}


@pytest.mark.parametrize("key", ODD)
def test_keys_that_are_none_of_a_lora(tmp_path, key):
    tensors = tensors_of(random_lora(TABLE, [MODULE]), "lightning", alphas=True)
    assert ODD[key] in refusal(tmp_path / "a.safetensors", {**tensors, key: np.ones((4, 4), np.float32)})


def test_fp8_is_refused_by_its_name(tmp_path):
    tensors = tensors_of(random_lora(TABLE, [MODULE]), "lightning", alphas=True)
    rounded = {name: x.astype(ml_dtypes.float8_e4m3fn) if x.ndim == 2 else x for name, x in tensors.items()}
    message = refusal(tmp_path / "a.safetensors", rounded)
    assert "is stored in fp8, and bfloat16, float16, float32 are read" in message and "trained for" not in message


@pytest.mark.parametrize(
    ("without", "says"),
    [("down.weight", "comes without its lora_A (lora_down)"), ("up.weight", "comes without its lora_B (lora_up)")],
)
def test_one_factor_without_the_other(tmp_path, without, says):
    tensors = tensors_of(random_lora(TABLE, [MODULE, "img_in"]), "lightning", alphas=True)
    del tensors[f"{MODULE}.lora_{without}"]
    message = refusal(tmp_path / "a.safetensors", tensors)
    assert says in message and "2 of its 5 keys" in message and "img_in" not in message


def test_an_alpha_alone(tmp_path):
    message = refusal(tmp_path / "a.safetensors", {f"{MODULE}.alpha": np.ones((), np.float32)})
    assert "comes without its lora_A (lora_down) and its lora_B (lora_up)" in message


@pytest.mark.parametrize(("one", "other"), [("lightning", "kohya"), ("peft", "diffusers"), ("diffusers", "comfyui")])
def test_two_layouts_of_one_module(tmp_path, one, other):
    lora = random_lora(TABLE, [MODULE])
    tensors = {name: x for layout in (one, other) for name, x in tensors_of(lora, layout, alphas=False).items()}
    message = refusal(tmp_path / "a.safetensors", tensors)
    assert "4 of its 4 keys" in message and f"is one of two LoRAs of {MODULE}" in message
    halves = [name for name in tensors if ("down" in name or "lora_A" in name)][:1]
    halves += [name for name in tensors if ("up" in name or "lora_B" in name)][1:]
    mixed = {name: tensors[name] for name in halves}
    assert "is one of two LoRAs" in refusal(tmp_path / "a.safetensors", mixed)


@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf, 1e30, [1, 2], []])
def test_alphas_that_are_none(tmp_path, value):
    tensors = tensors_of(random_lora(TABLE, [MODULE]), "lightning", alphas=False)
    tensors[f"{MODULE}.alpha"] = np.array(value, np.float32)
    assert "alpha: must be one number above 0" in refusal(tmp_path / "a.safetensors", tensors)


def test_ranks_and_dtypes_that_make_no_sense(tmp_path):
    for rank in (33, 0):
        tensors = {
            f"{MODULE}.lora_A.weight": np.zeros((rank, 32), np.float32),
            f"{MODULE}.lora_B.weight": np.zeros((32, rank), np.float32),
        }
        assert f"has rank {rank}, and 1 to 32 make sense" in refusal(tmp_path / "a.safetensors", tensors)
    tensors = tensors_of(random_lora(TABLE, [MODULE]), "diffusers", alphas=False)
    for dtype in (np.float64, np.int8):
        message = refusal(tmp_path / "a.safetensors", {name: x.astype(dtype) for name, x in tensors.items()})
        assert f"has dtype {np.dtype(dtype).name}, and bfloat16, float16, float32 are read" in message
    flat = {f"{MODULE}.lora_A.weight": np.float32(1), f"{MODULE}.lora_B.weight": np.ones(3, np.float32)}
    assert "has shape []" in refusal(tmp_path / "a.safetensors", {k: np.array(v) for k, v in flat.items()})


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_values_that_are_none(tmp_path, value, factor):
    tensors = tensors_of(random_lora(TABLE, [MODULE, "img_in"]), "diffusers", alphas=False)
    tensors[f"transformer.{MODULE}.lora_{factor}.weight"][1, 2] = value
    assert f"NaN or infinite values for {MODULE}; train it again" in refusal(tmp_path / "a.safetensors", tensors)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"r": 3}, "has rank 4, and the header's lora_adapter_metadata says 3"),
        ({}, "has rank 4, and the header's lora_adapter_metadata says 8"),
        ({"r": 8, "rank_pattern": {"to_k": 4}}, "the header's lora_adapter_metadata says 8"),
        ({"r": "4"}, "r = '4': must be a whole number of at least 1"),
        ({"r": True}, "r = True: must be a whole number of at least 1"),
        ({"r": 4, "lora_alpha": 0}, "lora_alpha = 0: must be a number above 0"),
        ({"r": 4, "lora_alpha": 10**400}, "is no finite number"),
        (
            {"r": 4, "alpha_pattern": {"to_q": None}},
            "{'to_q': None}: must be an object, each value of it a number",
        ),
        ({"r": 4, "rank_pattern": [4]}, "rank_pattern = [4]: must be an object, each value of it a whole number"),
        ({"r": 4, "rank_pattern": {"(a*)*b": 4}}, "is no name of a module; write the names out"),
        ({"r": 4, "use_dora": True}, "DoRA is not read"),
        ({"r": 4, "use_rslora": "yes"}, "use_rslora = 'yes': must be true or false"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_headers_that_say_something_else(tmp_path, config, says, prefix):
    tensors = tensors_of(random_lora(TABLE, [MODULE]), "diffusers", alphas=False)
    text = json.dumps({f"{prefix}{name}": value for name, value in config.items()})
    assert says in refusal(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": text})


def test_an_alpha_and_a_header_that_disagree(tmp_path):
    lora = random_lora(TABLE, [MODULE], scale=0.5)
    for alpha, agrees in ((2, True), (4, False)):
        metadata = {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": alpha})}
        file = write_layout(tmp_path / "a.safetensors", lora, "diffusers", metadata=metadata)
        if agrees:
            assert read_lora(file, TABLE).changes[MODULE].scale == 0.5
        else:
            assert "makes the scale 0.5, and the header's lora_adapter_metadata says 1" in refusal(file)


def test_files_that_are_no_safetensors(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"a": 1}))
    assert "pickles run code when read" in refusal(tmp_path / "a.pt")
    (tmp_path / "a.safetensors").write_bytes(pickle.dumps({"a": 1}))
    assert "no safetensors header" in refusal(tmp_path / "a.safetensors")
    assert "No such file" in refusal(tmp_path / "missing.safetensors")
    assert "no safetensors header" in refusal(tmp_path)
    assert "holds no tensors" in refusal(tmp_path / "a.safetensors", {})
    tensors = tensors_of(random_lora(TABLE, [MODULE]), "diffusers", alphas=False)
    assert "is not JSON" in refusal(tmp_path / "a.safetensors", tensors, {"qil_jax.origin": "{"})
    assert "holds no JSON object" in refusal(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": "[]"})
