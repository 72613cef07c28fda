"""Advice on LoRAs that need more than their file: by names, by what PEFT writes beside it, and by tensors."""

import json
import warnings
from pathlib import Path

import pytest
from loras import block_modules, random_lora, write_layout

from qil_jax import Pipeline
from qil_jax.cli import validate
from qil_jax.inference.checkpoint import LayeredCheckpoint
from qil_jax.programs import ended
from qil_jax.shipped import shipped_checkpoint
from qil_jax.weights import Checkpoint, Component
from qil_jax.weights.lora_advice import KNOWN, advice_on

CONTROL, STABLE = "belongs on the checkpoint Qwen-Image-Layered-Control", "needs Heun's sampler, which is not there yet"


def lora_at(file: Path, layout: str = "peft", **how) -> Path:
    """A LoRA of the shipped checkpoint in a new file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = Checkpoint(shipped_checkpoint())[Component.TRANSFORMER].table
    return write_layout(file, random_lora(table, block_modules(0)), layout, alphas=False, **how)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("stable-layers.safetensors", STABLE),
        ("models--StabilityLabs--Stable-Layers/snapshots/1/model/a.safetensors", STABLE),
        ("Qwen-Image-Layered-Control-V2/model.safetensors", CONTROL),
        ("mine/layers.safetensors", None),
    ],
)
def test_files_are_known_by_their_names(tmp_path, name, advice):
    found = LayeredCheckpoint.open(loras=[(lora_at(tmp_path / name), 1.0)]).advice
    assert [advice in line and "its names say" in line for line in found] == [True] * (advice is not None)


def test_metadata_names_the_base(tmp_path):
    base = "DiffSynth-Studio/Qwen-Image-Layered-Control"
    beside = lora_at(tmp_path / "a" / "x.safetensors", "peft alone")
    (beside.parent / "adapter_config.json").write_text(
        json.dumps({"r": 4, "lora_alpha": 4, "base_model_name_or_path": base})
    )
    within = lora_at(tmp_path / "y.safetensors", metadata={"ss_base_model": base})
    for file in (beside, within):
        (line,) = LayeredCheckpoint.open(loras=[(file, 1.0)]).advice
        assert line.startswith(f"{file}: its names say Qwen-Image-Layered-Control-V2") and CONTROL in line


def test_programs_and_python_say_it(tmp_path, capsys):
    file = lora_at(tmp_path / "stable_layers.safetensors")
    assert ended(validate.main, [str(file), "--base", str(shipped_checkpoint())]) == 0
    assert f"note: {file}: its names say Stable-Layers: it {STABLE}" in capsys.readouterr().out
    with pytest.warns(UserWarning, match=STABLE):
        Pipeline.load(loras=[(file, 1.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pipeline.load(loras=[(lora_at(tmp_path / "mine.safetensors"), 1.0)])


def test_tensors_that_others_have_too_are_no_proof():
    """The names and the rank of a public training script, which makes others' LoRAs as well."""
    maps = KNOWN[0].tensors.maps
    factors = [(f"transformer_blocks.{i}.{name}", f"{name}.lora_A.default.weight", 64) for i in (0, 1) for name in maps]
    (line,) = advice_on(Path("model.safetensors"), factors)
    assert "if this is Qwen-Image-Layered-Control-V2, whose tensors it has" in line and CONTROL in line
    assert advice_on(Path("model.safetensors"), factors[1:12]) == ()
    assert advice_on(Path("model.safetensors"), [(*factor[:2], 32) for factor in factors]) == ()
    raw = [("transformer_blocks.0.attn.to_q", "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight", 8)]
    (line,) = advice_on(Path("adapter_model.safetensors"), raw)
    assert "if this is Stable-Layers, whose tensors it has" in line and STABLE in line
    assert advice_on(Path("other.safetensors"), raw) == ()
