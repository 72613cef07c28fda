"""What `qil validate` must not call sound: each case through the program, one report, no traceback."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qil_jax.cli import validate
from qil_jax.weights.convert import to_orbax
from qil_jax.weights.safetensors_io import ShardedWriter, TensorPlan
from tools.make_demo_checkpoint import SPECIAL, write_checkpoint

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
MERGES = "tokenizer/merges.txt"
SCHEDULER = "scheduler/scheduler_config.json"
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 40861031488\n"
DEEP = b"[" * 200_000 + b"]" * 200_000


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A checkpoint whose transformer lies in shards and whose tokenizer lies in vocab.json and merges.txt."""
    folder = tmp_path_factory.mktemp("sound") / "checkpoint"
    write_checkpoint(folder)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    plans = [TensorPlan(name=n, dtype=x.dtype, shape=x.shape) for n, x in tensors.items()]
    size = sum(plan.bytes for plan in plans)
    writer = ShardedWriter(folder / "transformer", "diffusion_pytorch_model", plans, shard_bytes=size // 2)
    for name, x in tensors.items():
        writer.write(name, x)
    writer.close()
    file = folder / "tokenizer" / "tokenizer.json"
    model = json.loads(file.read_text())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / MERGES).write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"]))
    ids = {token: len(model["vocab"]) + i for i, token in enumerate(SPECIAL)}
    (folder / "tokenizer" / "added_tokens.json").write_text(json.dumps(ids))
    file.unlink()
    assert validate.main([str(folder), "--values"]) == 0
    return folder


@pytest.fixture
def checkpoint(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "checkpoint"))


Damage = Callable[[Path], object]


def written(name: str, data: bytes | str) -> Damage:
    """Another content of a file."""
    return lambda folder: (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def edited(name: str, **changes) -> Damage:
    """Other values in a JSON file."""
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))


def headed(change: Callable[[dict, list[str]], object], more: bytes = b"") -> Damage:
    """Another header of the VAE's file; `change` gets its entries and the names of its tensors in their order."""

    def damage(folder: Path) -> None:
        file = folder / "vae" / "diffusion_pytorch_model.safetensors"
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        changed = change(header, sorted(header.keys() - {"__metadata__"}, key=lambda n: header[n]["data_offsets"]))
        text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :] + more)

    return damage


def entry(**changes) -> Damage:
    """Other values of the second tensor of the VAE's file."""
    return headed(lambda header, names: header[names[1]].update(changes))


def remapped(change: Callable[[dict], object]) -> Damage:
    """Another weight_map in the index of the transformer's shards."""

    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def to_another_shard(weight_map: dict) -> None:
    name = next(iter(weight_map))
    weight_map[name] = next(shard for shard in weight_map.values() if shard != weight_map[name])


def overlapping(header: dict, names: list[str]) -> None:
    one, other, *_ = (n for n in names if header[n]["shape"] == header[names[0]]["shape"])
    header[other]["data_offsets"] = header[one]["data_offsets"]


def twice(header: dict, names: list[str]) -> bytes:
    text = json.dumps({names[0]: header[names[0]]})
    return (text[:-1] + ", " + json.dumps(header)[1:]).encode()


def one_merge(folder: Path) -> None:
    lines = (folder / MERGES).read_text().splitlines(keepends=True)
    (folder / MERGES).write_text("".join(lines[:2]))


CASES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), ("tokenizer: needs tokenizer.json", "copy them")),
    "an empty vocabulary": (written("tokenizer/vocab.json", "{}"), ("tokenizer", "copy it again")),
    "an empty vocabulary and no merges": (
        lambda f: [written("tokenizer/vocab.json", "{}")(f), written(MERGES, "#version: 0.2\n")(f)],
        ("tokenizer",),
    ),
    "merges of one line": (one_merge, ("merges.txt: no merges make", "cut short?")),
    "a vocabulary that is a list": (written("tokenizer/vocab.json", "[]"), ("vocab.json: holds no JSON object",)),
    "no tokens of chat": (written("tokenizer/added_tokens.json", "{}"), ("has no token <|im_start|> or <|im_end|>",)),
    "tokens beside the vocabulary without ids": (
        written("tokenizer/added_tokens.json", '{"<|im_start|>": "x"}'),
        ("added_tokens.json: must give tokens their ids",),
    ),
    "more tokens than rows": (
        edited("text_encoder/config.json", vocab_size=300),
        ("tokenizer: has ids up to", "the text encoder's vocab_size is 300"),
    ),
    "model_index of garbage": (written("model_index.json", b"\xff\x00garbage"), ("model_index.json", "copy it again")),
    "model_index that is a list": (written("model_index.json", "[]"), ("model_index.json: holds no JSON object",)),
    "model_index of nothing": (written("model_index.json", "{}"), ("_class_name is None",)),
    "model_index of another transformer": (
        edited("model_index.json", transformer=["diffusers", "FluxTransformer2DModel"]),
        ("FluxTransformer2DModel", "supported is QwenImageTransformer2DModel"),
    ),
    "model_index of Qwen-Image 2.1": (
        edited("model_index.json", _class_name="QwenImage21Pipeline"),
        ("_class_name is QwenImage21Pipeline: Qwen-Image 2.1 is another model; give Qwen-Image-Layered",),
    ),
    "a pointer of Git LFS in place of tensors": (
        written("vae/diffusion_pytorch_model.safetensors", LFS),
        ("is a pointer of Git LFS, not the file: install git-lfs, then run `git lfs pull`",),
    ),
    "a pointer of Git LFS in place of JSON": (
        written("tokenizer/vocab.json", LFS),
        ("vocab.json: is a pointer of Git LFS, not the file",),
    ),
    "GGUF in place of tensors": (
        written("vae/diffusion_pytorch_model.safetensors", b"GGUF" + bytes(60)),
        ("is a GGUF file, which is not read: give the released safetensors",),
    ),
    "an empty scheduler": (written(SCHEDULER, "{}"), ("scheduler_config.json", "empty", "copy it")),
    "a scheduler of wrong types": (
        edited(SCHEDULER, shift="three", use_dynamic_shifting="yes", shift_terminal=[1], num_train_timesteps="1000"),
        (
            *("shift = 'three': must be a number", "use_dynamic_shifting = 'yes': must be true or false"),
            *("shift_terminal = [1]: must be a number", "num_train_timesteps = '1000' is not supported"),
        ),
    ),
    "another scheduler": (edited(SCHEDULER, _class_name="DDIMScheduler"), ("DDIMScheduler", "not supported")),
    "latents_mean of text": (
        edited("vae/config.json", latents_mean=["a"] * 16),
        ("latents_mean", "must be a list, each of it a number"),
    ),
    "latents_mean that is a text": (edited("vae/config.json", latents_mean="0"), ("latents_mean = '0': must be",)),
    "no heads": (edited("text_encoder/config.json", num_attention_heads=None), ("'num_attention_heads' is missing",)),
    "null heads": (
        edited("transformer/config.json", num_attention_heads=None),
        ("num_attention_heads = None: must be",),
    ),
    "heads that do not divide the width": (
        edited("text_encoder/config.json", num_attention_heads=5),
        ("hidden_size 64 must split into num_attention_heads 5",),
    ),
    "heads that do not divide": (
        edited("text_encoder/config.json", num_key_value_heads=3),
        ("num_attention_heads 4 must be a multiple of num_key_value_heads 3",),
    ),
    "output channels that are not the latents'": (
        edited("transformer/config.json", out_channels=8),
        ("out_channels x 4 = 32 does not hold z_dim 16 x 4",),
    ),
    "wrong types": (
        edited("transformer/config.json", num_layers="3", patch_size=2.0, use_layer3d_rope=1),
        ("num_layers = '3': must be a whole number", "patch_size = 2.0", "use_layer3d_rope = 1: must be true or false"),
    ),
    "a model beyond any memory": (
        edited("transformer/config.json", num_layers=10**9),
        ("must be a whole number from 1",),
    ),
    "parts of configs that are no objects": (
        edited("text_encoder/config.json", vision_config=[], text_config="x", rope_parameters=3),
        ("vision_config = []: must be an object", "text_config = 'x'", "rope_parameters = 3"),
    ),
    "values of a vision tower that it cannot have": (
        edited(
            "text_encoder/config.json",
            image_token_id=-1,
            vision_config={
                "fullatt_block_indexes": 7,
                "hidden_act": "quick_gelu",
                "rope_parameters": 3,
                "window_size": "112",
            },
        ),
        (
            *("image_token_id = -1: must be a whole number from 0", "fullatt_block_indexes = 7: must be a list"),
            *("vision_config: hidden_act = 'quick_gelu' is not supported", "rope_parameters = 3: must be an object"),
            "window_size = '112': must be a whole number from 1",
        ),
    ),
    "sizes of a vision tower that do not fit": (
        edited(
            "text_encoder/config.json",
            vision_config={"num_heads": 3, "window_size": 27, "rope_parameters": {"rope_theta": 0}},
        ),
        (
            "vision_config: hidden_size 1280 must split into num_heads 3 of a width that 4 divides",
            "vision_config: window_size 27 is smaller than a token of 28 pixels",
            "vision_config: rope_theta 0.0 must be positive",
        ),
    ),
    "odd axes": (edited("transformer/config.json", axes_dims_rope=[7, 13, 12]), ("axes_dims_rope", "even")),
    "tensors that overlap": (headed(overlapping), ("overlaps",)),
    "a tensor twice": (headed(twice), ("occurs twice",)),
    "trailing bytes": (headed(lambda h, n: None, more=b"12345"), ("5 bytes follow the last tensor",)),
    "a hole": (
        headed(lambda h, n: h[n[-1]].update(data_offsets=[x + 4 for x in h[n[-1]]["data_offsets"]]), more=b"1234"),
        ("leaves bytes unused after",),
    ),
    "float shapes": (entry(shape=[2.0, 3.0]), ("has shape [2.0, 3.0], which must be a list of whole numbers",)),
    "a shape that is a number": (entry(shape=3), ("has shape 3",)),
    "float offsets": (entry(data_offsets=[0.0, 8.0]), ("has data_offsets [0.0, 8.0], which must be two",)),
    "three offsets": (entry(data_offsets=[0, 4, 8]), ("has data_offsets [0, 4, 8], which must be two",)),
    "text offsets": (entry(data_offsets=["0", "8"]), ("has data_offsets ['0', '8'], which must be two",)),
    "a dtype of another type": (entry(dtype=["F32"]), ("has dtype ['F32'], known are",)),
    "an entry without a shape": (headed(lambda h, n: h[n[0]].pop("shape")), ("needs dtype, shape and data_offsets",)),
    "a header 200,000 deep": (headed(lambda h, n: b'{"a":' + DEEP + b"}"), ("nested more than 64 levels deep",)),
    "a config 200,000 deep": (written("vae/config.json", DEEP), ("config.json: nested more than 64 levels deep",)),
    "an index 200,000 deep": (written(INDEX, DEEP), ("index.json: nested more than 64 levels deep",)),
    "an index that is a list": (written(INDEX, '["a"]'), ("index.json: holds no JSON object",)),
    "an index without weight_map": (written(INDEX, '{"metadata": {}}'), ("weight_map must be an object",)),
    "an index of numbers": (written(INDEX, '{"weight_map": {"a": 3}}'), ("'a': 3 names no file beside the index",)),
    "an index that leads elsewhere": (
        written(INDEX, '{"weight_map": {"a": "../vae/diffusion_pytorch_model.safetensors"}}'),
        ("names no file beside the index",),
    ),
    "an index that maps to the wrong shard": (remapped(to_another_shard), ("is not in diffusion", "but in diffusion")),
    "an index that names an absent tensor": (
        remapped(lambda m: m.update(absent=next(iter(m.values())))),
        ("absent is in none of the shards",),
    ),
    "an index that leaves out a tensor": (remapped(lambda m: m.pop(next(iter(m)))), ("is not named; download both",)),
}


@pytest.mark.full
def test_a_checkpoint_that_decomposes_nothing_says_so(checkpoint, capsys):
    """Its files fit together, as those of Qwen-Image do, whatever model_index.json calls the pipeline."""
    assert validate.main([str(checkpoint)]) == 0
    assert "decomposes nothing" not in capsys.readouterr().out
    edited("transformer/config.json", use_layer3d_rope=False)(checkpoint)
    assert validate.main([str(checkpoint)]) == 0
    said = capsys.readouterr().out
    assert "is sound\nbut it decomposes nothing: transformer/config.json: use_layer3d_rope and" in said


@pytest.mark.parametrize("name", CASES)
@pytest.mark.full
def test_an_unsound_checkpoint_is_refused_in_one_report(checkpoint, name, capsys):
    damage, words = CASES[name]
    damage(checkpoint)
    assert validate.main([str(checkpoint)]) == 1
    said = capsys.readouterr()
    assert "is sound" not in said.out
    assert said.err.count("is not a sound checkpoint") == 1
    assert not [word for word in words if word not in said.err], said.err


def test_everything_is_reported_at_once(checkpoint, capsys):
    names = ("no tokenizer", "an empty scheduler", "wrong types", "tensors that overlap", "model_index of nothing")
    for name in names:
        CASES[name][0](checkpoint)
    assert validate.main([str(checkpoint)]) == 1
    said = capsys.readouterr().err
    assert not [word for name in names for word in CASES[name][1] if word not in said], said


def test_absent_fields_are_the_reference_libraries_defaults(checkpoint):
    file = checkpoint / "transformer" / "config.json"
    values = json.loads(file.read_text())
    assert (values.pop("in_channels"), values.pop("out_channels"), values.pop("patch_size")) == (64, 16, 2)
    file.write_text(json.dumps(values))
    written(SCHEDULER, '{"use_dynamic_shifting": true}')(checkpoint)
    assert validate.main([str(checkpoint)]) == 0


def test_tokens_of_turns_may_come_from_the_tokenizers_config(checkpoint):
    file = checkpoint / "tokenizer" / "added_tokens.json"
    decoder = {str(i): {"content": token, "special": True} for token, i in json.loads(file.read_text()).items()}
    file.unlink()
    assert validate.main([str(checkpoint)]) == 1
    written("tokenizer/tokenizer_config.json", json.dumps({"added_tokens_decoder": decoder}))(checkpoint)
    assert validate.main([str(checkpoint)]) == 0


ORBAX: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "a tokenizer": CASES["no tokenizer"],
    "metadata": (lambda f: (f / "transformer/params/_METADATA").unlink(), ("_METADATA: missing; convert again",)),
    "garbage for an array's metadata": (
        written("transformer/params/backbone.image_in.bias/.zarray", '{"shape": [64]}'),
        ("backbone.image_in.bias: is no zarr array", "convert again"),
    ),
    "an array's metadata 200,000 deep": (
        written("transformer/params/backbone.image_in.bias/.zarray", DEEP),
        ("backbone.image_in.bias/.zarray: nested more than 64 levels deep; convert again",),
    ),
    "an array of integers": (
        edited("transformer/params/backbone.image_in.bias/.zarray", dtype="<i4"),
        ("backbone/image_in/bias has dtype int32, supported are",),
    ),
    "taps of another dtype than the parameter's": (
        lambda f: save_file(
            {n: x.astype(np.float16) for n, x in load_file(f / "vae/temporal.safetensors").items()},
            f / "vae/temporal.safetensors",
        ),
        ("has dtype float16, its parameter float32; convert again",),
    ),
    "the taps, and an array": (
        lambda f: [(f / "vae/temporal.safetensors").unlink(), shutil.rmtree(f / "vae/params/quant_conv.bias")],
        ("temporal.safetensors: ", "quant_conv/bias [32] is missing; convert again"),
    ),
}


@pytest.fixture(scope="module")
def orbax(sound, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "orbax"
    to_orbax(sound, folder)
    assert validate.main([str(folder), "--values"]) == 0
    return folder


@pytest.mark.parametrize("name", ORBAX)
@pytest.mark.full
def test_an_unsound_checkpoint_of_orbax_is_refused_in_one_report(orbax, tmp_path, name, capsys):
    damage, words = ORBAX[name]
    damaged = Path(shutil.copytree(orbax, tmp_path / "orbax"))
    damage(damaged)
    assert validate.main([str(damaged)]) == 1
    said = capsys.readouterr()
    assert "is sound" not in said.out
    assert not [word for word in words if word not in said.err], said.err
