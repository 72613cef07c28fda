"""The checkpoint of `make demo`: the released layout, sound, small, and made without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qil_jax.encoders.tokenizer import PREFIX, SUFFIX, PromptTokenizer
from qil_jax.programs import ended
from qil_jax.weights import Checkpoint
from tools.make_demo_checkpoint import main, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "checkpoint"
    assert main([str(folder)]) == 0
    return folder


def test_it_is_sound_and_a_few_megabytes(checkpoint):
    Checkpoint(checkpoint).require_sound()
    assert 1e6 < sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()) < 10e6


def test_it_has_the_flags_of_the_layered_release(checkpoint):
    read = lambda name: json.loads((checkpoint / name).read_text(encoding="utf-8"))
    transformer, vae = read("transformer/config.json"), read("vae/config.json")
    assert transformer["use_layer3d_rope"] and transformer["use_additional_t_cond"]
    assert (vae["input_channels"], vae["z_dim"]) == (4, 16)
    assert len(vae["latents_mean"]) == len(vae["latents_std"]) == 16
    assert read("scheduler/scheduler_config.json")["time_shift_type"] == "linear"
    assert read("model_index.json")["_class_name"] == "QwenImageLayeredPipeline"


def test_its_tokenizer_reads_any_prompt(checkpoint):
    tokenizer = PromptTokenizer(Checkpoint(checkpoint).tokenizer)
    for prompt in ("", " ", "a tabby cat", "一只猫", "\nmélange 🐈"):
        ids = tokenizer.ids(prompt)
        assert tokenizer._tokenizer.decode(ids, skip_special_tokens=False) == PREFIX + prompt + SUFFIX
        assert max(ids) < 512  # rows of the embedding
    dog = tokenizer.ids("dog")
    assert tokenizer.ids("cat")[: tokenizer.drop] == dog[: tokenizer.drop]
    assert tokenizer._tokenizer.decode(dog[tokenizer.drop :], skip_special_tokens=False) == "dog" + SUFFIX


def test_it_is_the_same_every_time(checkpoint, tmp_path):
    write_checkpoint(tmp_path / "again")
    for path in checkpoint.rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(checkpoint)).read_bytes()


def test_a_folder_is_replaced_only_on_demand(checkpoint, capsys):
    mark = checkpoint / "mark"
    mark.touch()
    with pytest.raises(SystemExit):
        main([str(checkpoint)])
    assert "--overwrite" in capsys.readouterr().err and mark.exists()
    assert main([str(checkpoint), "--overwrite"]) == 0
    assert not mark.exists() and Checkpoint(checkpoint).problems == []


def test_a_folder_is_replaced_once_the_new_one_is_whole(checkpoint, tmp_path, monkeypatch, capsys):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    (folder / "mark").touch()
    assert ended(main, [str(folder), "--overwrite", "--captions", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("tools.make_demo_checkpoint.write_component", full)
    assert ended(main, [str(folder), "--overwrite"]) == 2
    assert capsys.readouterr().err.startswith("error: No space left on device; to go on: ")
    assert (folder / "mark").exists() and Checkpoint(folder).problems == []
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    photograph = tmp_path / "photograph.png"
    photograph.touch()
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--overwrite"])
    assert "no checkpoint" in capsys.readouterr().err and photograph.exists()


@pytest.mark.full
def test_it_needs_no_torch(tmp_path):
    program = f"""
import sys
sys.modules.update(torch=None, diffusers=None, transformers=None)  # importing any of them fails
sys.path.insert(0, {str(ROOT)!r})
from tools.make_demo_checkpoint import main
sys.exit(main([{str(tmp_path / "checkpoint")!r}]))
"""
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
