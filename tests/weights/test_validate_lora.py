"""`qil validate` on LoRA files, and the stage that it names for checkpoints."""

import dataclasses
import json

import numpy as np
import pytest
from loras import TOP, block_modules, random_lora, tensors_of, write_layout
from safetensors.numpy import save_file

from qil_jax.cli import validate
from qil_jax.weights import Checkpoint, Component, write_lora
from qil_jax.weights.released import CONFIGS
from qil_jax.weights.tables import table_of
from tools.make_demo_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def table(base):
    return Checkpoint(base)[Component.TRANSFORMER].table


def run(*words) -> int:
    return validate.main([str(word) for word in words])


def test_what_it_says_of_a_lora(base, table, tmp_path, capsys):
    lora = random_lora(table, [*block_modules(0), *block_modules(1), *TOP], ranks=(2, 2, 4), scale=0.25)
    write_lora(tmp_path / "a.safetensors", dataclasses.replace(lora, origin={"stage": "decomposition", "step": 300}))
    assert run(tmp_path / "a.safetensors", "--base", base) == 0
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if "transformer_blocks.*.attn.to_q" in line)
    assert [cell.strip() for cell in row.split("│")[2:-1]] == ["2", "2, 4", "0.25", "diffusers", "float32"]
    assert sum("transformer_blocks" in line for line in said.splitlines()) == 14
    assert "made by the stage decomposition, step 300" in said and "is sound" in said


def test_without_a_base_it_is_the_release(base, table, tmp_path, capsys):
    released = table_of(Component.TRANSFORMER, CONFIGS[Component.TRANSFORMER])
    file = write_layout(tmp_path / "a.safetensors", random_lora(released, ["img_in", "proj_out"]), "kohya")
    assert run(file) == 0
    assert "made by no known stage" in capsys.readouterr().out
    assert run(file, "--base", base) == 1
    assert "proj_out.lora_down.weight" in capsys.readouterr().err
    small = write_layout(tmp_path / "b.safetensors", random_lora(table, ["img_in"]), "kohya")
    assert run(small) == 1
    assert "--base CHECKPOINT checks against another" in capsys.readouterr().err


def test_unsound_files(base, table, tmp_path, capsys):
    tensors = tensors_of(random_lora(table, ["img_in"]), "diffusers", alphas=False)
    tensors["transformer.img_in.lora_A.weight"][0, 0] = np.nan
    save_file(tensors, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"x")
    for name, says in (("a", "NaN or infinite"), ("b", "no safetensors header"), ("c", "No such file")):
        assert run(tmp_path / f"{name}.safetensors", "--base", base) == 1
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["FILE", "--values"], "--values: for checkpoints"),
        (["FILE", "--numerics", "--against", "x"], "--against, --numerics: for checkpoints"),
        (["BASE", "--base", "BASE"], "--base is for a LoRA file"),
    ],
)
def test_options_that_do_not_belong(base, table, tmp_path, words, says, capsys):
    file = write_layout(tmp_path / "a.safetensors", random_lora(table, ["img_in"]), "peft")
    places = {"FILE": file, "BASE": base}
    with pytest.raises(SystemExit) as caught:
        run(*(places.get(word, word) for word in words))
    assert caught.value.code == 2 and says in capsys.readouterr().err


def test_the_stage_of_a_checkpoint(tmp_path, capsys):
    write_checkpoint(tmp_path / "a")
    assert run(tmp_path / "a") == 0
    assert "made by" not in capsys.readouterr().out
    (tmp_path / "a" / "training.json").write_text(json.dumps({"stage": "rgba_vae", "step": 1200}))
    assert run(tmp_path / "a") == 0
    assert "made by the stage rgba_vae, step 1200" in capsys.readouterr().out
