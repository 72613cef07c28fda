"""Damaged and misfit checkpoints: refused before any tensor is read, naming what, where and the fix."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qil_jax.cli import validate
from qil_jax.inference.pipeline import Pipeline
from qil_jax.models.config import ConfigError
from qil_jax.programs import ended
from qil_jax.weights import Checkpoint, StructureError
from qil_jax.weights.convert import to_diffusers, to_orbax
from qil_jax.weights.safetensors_io import ShardedWriter, TensorPlan
from tools.make_demo_checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
FILE = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder)
    assert Checkpoint(folder).problems == []
    return folder


def edit(file: Path, **changes) -> None:
    """Change keys of a JSON file; None removes one."""
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def shard(folder: Path, parts: int = 3) -> list[Path]:
    """Rewrite a component's single file as shards with an index."""
    single = next(folder.glob("*.safetensors"))
    tensors = load_file(single)
    single.unlink()
    plans = [TensorPlan(name=n, dtype=x.dtype, shape=x.shape) for n, x in tensors.items()]
    total = sum(plan.bytes for plan in plans)
    writer = ShardedWriter(folder, single.stem, plans, shard_bytes=total // parts)
    for name, x in tensors.items():
        writer.write(name, x)
    writer.close()
    return sorted(folder.glob("*.safetensors"))


def only_problem(folder: Path, *words: str) -> str:
    """The problem that names all the words; whatever opens the checkpoint refuses it with the same report."""
    with pytest.raises(StructureError) as caught:
        Checkpoint(folder).require_sound()
    matching = [p for p in caught.value.problems if all(word in p for word in words)]
    assert matching, caught.value.problems
    with pytest.raises((StructureError, ConfigError)):
        Pipeline.load(folder)
    with pytest.raises((StructureError, ConfigError)):
        to_orbax(folder, folder.with_name("converted"))
    assert not folder.with_name("converted").exists()
    return matching[0]


def test_shards_are_sound(checkpoint):
    assert len(shard(checkpoint / "transformer")) >= 3
    Checkpoint(checkpoint).require_sound()


def test_missing_shard(checkpoint):
    lost = shard(checkpoint / "transformer")[1]
    lost.unlink()
    only_problem(checkpoint, str(lost), "missing; download it again")


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_truncated_shard(checkpoint, keep):
    file = shard(checkpoint / "transformer")[-1]
    data = file.read_bytes()
    file.write_bytes(data[:keep])
    only_problem(checkpoint, str(file), "download it again")


def test_malformed_headers(checkpoint):
    file = checkpoint / VAE_FILE
    for header in (
        b"not json at all",
        b'{"a": 3}',
        b'["a"]',
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}',
    ):
        file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
        only_problem(checkpoint, str(file))


def test_index_that_does_not_match_its_shards(checkpoint):
    shard(checkpoint / "transformer")
    index = next((checkpoint / "transformer").glob("*.index.json"))
    edit(index, metadata={"total_size": 7})
    only_problem(checkpoint, str(index), "total_size is 7", "download both again")


def test_two_files_without_an_index(checkpoint):
    for index in (shard(checkpoint / "transformer")[0].parent).glob("*.index.json"):
        index.unlink()
    only_problem(checkpoint, "no index", "restore")


def test_pickles_are_never_read(checkpoint):
    (checkpoint / VAE_FILE).unlink()
    (checkpoint / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    only_problem(checkpoint, "diffusion_pytorch_model.bin", "pickles run code", "convert them to safetensors")


def test_wrong_shape_name_dtype_and_count_in_one_report(checkpoint):
    tensors = load_file(checkpoint / FILE)
    tensors["img_in.weight"] = tensors["img_in.weight"][:, :-1].copy()
    tensors["img_in.byas"] = tensors.pop("img_in.bias")
    tensors["proj_out.bias"] = tensors["proj_out.bias"].astype(np.int32)
    save_file(tensors, checkpoint / FILE)
    problem = only_problem(checkpoint, "img_in.weight has shape [64, 63], config.json asks for [64, 64]")
    assert str(checkpoint / FILE) in problem
    only_problem(checkpoint, "img_in.bias [64] is missing")
    only_problem(checkpoint, "img_in.byas", "is not in the model that config.json describes")
    only_problem(checkpoint, "proj_out.bias has dtype int32, supported are bfloat16, float16, float32")
    only_problem(checkpoint, "tensors found", "expected")


def test_blocks_of_unlike_dtypes(checkpoint):
    tensors = load_file(checkpoint / FILE)
    name = "transformer_blocks.1.attn.to_q.weight"
    tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)
    save_file(tensors, checkpoint / FILE)
    only_problem(checkpoint, "attn.to_q.weight", "mix the dtypes bfloat16, float32")


def test_a_config_of_another_depth(checkpoint):
    edit(checkpoint / "transformer" / "config.json", num_layers=3)
    only_problem(checkpoint, "transformer_blocks.2.", "is missing")


def test_latent_statistics(checkpoint):
    config = checkpoint / "vae" / "config.json"
    edit(config, latents_mean=None, latents_std=None)
    problem = only_problem(checkpoint, "latents_mean", "latents_std")
    assert "copy" in problem
    edit(config, latents_mean=[0.0] * 16, latents_std=[1.0] * 3)
    only_problem(checkpoint, "latents_std", "16")
    edit(config, latents_std=[0.0] * 16)
    only_problem(checkpoint, "latents_std")


def test_rgb_vae_with_a_layered_transformer(checkpoint):
    tensors = load_file(checkpoint / VAE_FILE)
    edit(checkpoint / "vae" / "config.json", input_channels=3)
    tensors["encoder.conv_in.weight"] = tensors["encoder.conv_in.weight"][:, :3].copy()
    for part in ("weight", "bias"):
        tensors[f"decoder.conv_out.{part}"] = tensors[f"decoder.conv_out.{part}"][:3].copy()
    save_file(tensors, checkpoint / VAE_FILE)
    only_problem(checkpoint, "input_channels is 3", "RGBA-VAE with 4", "use the vae/ folder of Qwen-Image-Layered")


def test_parts_that_do_not_fit_together(checkpoint):
    edit(checkpoint / "transformer" / "config.json", joint_attention_dim=48)
    only_problem(checkpoint, "joint_attention_dim does not match the text encoder's width 64")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guidance_embeds": True}, "guidance_embeds"),
        ({"zero_cond_t": True}, "zero_cond_t"),
        ({"axes_dims_rope": [8, 8, 8]}, "axes_dims_rope"),
        ({"new_feature": 1}, "new_feature"),
    ],
)
def test_configs_of_another_model(checkpoint, changes, words):
    edit(checkpoint / "transformer" / "config.json", **changes)
    only_problem(checkpoint, "transformer/config.json", words)


def test_missing_and_malformed_configs_are_reported_together(checkpoint):
    (checkpoint / "vae" / "config.json").unlink()
    (checkpoint / "transformer" / "config.json").write_text("{")
    (checkpoint / "scheduler" / "scheduler_config.json").unlink()
    only_problem(checkpoint, "vae/config.json: missing; copy the whole vae/ folder")
    only_problem(checkpoint, "transformer/config.json", "copy it again")
    only_problem(checkpoint, "scheduler/scheduler_config.json: missing")


def test_wrong_folders(checkpoint):
    assert "give the one that holds model_index.json" in Checkpoint(checkpoint / "nowhere").problems[0]
    assert "give the top folder" in Checkpoint(checkpoint / "vae").problems[0]


@pytest.mark.full
def test_damaged_orbax_folders(checkpoint):
    orbax = checkpoint.with_name("orbax")
    to_orbax(checkpoint, orbax)
    params = orbax / "transformer" / "params"
    chunk = next((params / "backbone.blocks.image.q.kernel").glob("1.*"))
    data = chunk.read_bytes()
    chunk.unlink()
    assert any(str(chunk) in p and "convert again" in p for p in Checkpoint(orbax).problems)
    chunk.write_bytes(data[:-2])
    assert any(str(chunk) in p for p in Checkpoint(orbax).problems)
    chunk.write_bytes(data)
    assert Checkpoint(orbax).problems == []
    shutil.rmtree(params / "backbone.image_in.bias")
    (orbax / "vae" / "temporal.safetensors").unlink()
    problems = Checkpoint(orbax).problems
    assert any("backbone/image_in/bias" in p and "missing" in p for p in problems)
    assert any("temporal.safetensors" in p for p in problems)
    with pytest.raises(StructureError):
        to_diffusers(orbax, checkpoint.with_name("back"))


@pytest.mark.full
def test_validate_says_so_with_its_exit_status(checkpoint, capsys):
    assert ended(validate.main, [str(checkpoint)]) == 0
    good = capsys.readouterr().out
    assert "is sound" in good and "340,608" in good
    edit(checkpoint / "transformer" / "config.json", num_layers=3)
    command = [sys.executable, "-m", "qil_jax", "validate", checkpoint]
    bad = subprocess.run(command, capture_output=True, text=True)
    assert bad.returncode == 1
    assert "is missing" in bad.stderr and "is sound" not in bad.stdout
    assert "Traceback" not in bad.stderr


@pytest.mark.full
def test_numerics_find_every_wrong_block(checkpoint, capsys):
    pytest.importorskip("torch", reason="needs torch: pip install -e '.[parity]'")
    orbax = checkpoint.with_name("orbax")
    to_orbax(checkpoint, orbax)
    compare = [str(orbax), "--numerics", "--reference", str(checkpoint)]
    assert ended(validate.main, compare) == 0
    assert capsys.readouterr().out.count(" max ") == 2 + 4 + 4 + 6
    for array, part in (
        ("transformer/params/backbone.blocks.text.mlp_in.kernel", "1.*"),
        ("text_encoder/params/visual.blocks.up.kernel", "0.*"),
        ("text_encoder/params/lm_head.kernel", "0.*"),
    ):
        chunk = next((orbax / array).glob(part))
        values = np.fromfile(chunk, np.float32)
        values[17] += 0.5
        values.tofile(chunk)
    assert ended(validate.main, compare) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    found = zip(failed, ("output head", "vision 0", "block 1"), strict=True)
    assert all(name in line for line, name in found), failed
    assert ended(validate.main, compare[:2]) == 2
