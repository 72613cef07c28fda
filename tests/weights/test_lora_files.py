"""LoRA files: what is read is what was written, in every layout and dtype, and what is added to kernels."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from loras import (
    SPELLINGS,
    TIMESTEP,
    TOP,
    VARIANTS,
    block_modules,
    in_bf16,
    random_lora,
    tensors_of,
    write_layout,
)
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from qil_jax.mesh import INFERENCE_RULES, TRAINING_RULES, MeshShape, Sharding, make_mesh, single_device_mesh
from qil_jax.models.paths import slashed
from qil_jax.weights import Checkpoint, Component, LoRA, LoRAError, read_lora, write_lora
from qil_jax.weights.convert import to_orbax
from qil_jax.weights.lora_header import linear_maps
from qil_jax.weights.safetensors_io import TensorReader
from qil_jax.weights.tables.entries import targets
from tools.make_demo_checkpoint import write_checkpoint

MODULES = [*block_modules(0), *block_modules(1), *TOP, *TIMESTEP]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "checkpoint"
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def table(checkpoint):
    return Checkpoint(checkpoint)[Component.TRANSFORMER].table


def same(one: LoRA, other: LoRA) -> None:
    assert one.changes.keys() == other.changes.keys()
    for module, change in one.changes.items():
        np.testing.assert_array_equal(change.a, other.changes[module].a)
        np.testing.assert_array_equal(change.b, other.changes[module].b)
        assert change.a.dtype == change.b.dtype == np.float32
        assert change.scale == other.changes[module].scale


def test_every_linear_map_may_have_one(table):
    assert {*linear_maps(table)} == {*MODULES}


@pytest.mark.parametrize("name", SPELLINGS | VARIANTS)
def test_every_layout_is_read(table, tmp_path, name):
    lora = random_lora(table, MODULES, ranks=(2, 4, 8), scale=0.5)
    same(read_lora(write_layout(tmp_path / "a.safetensors", lora, name), table), lora)


@pytest.mark.parametrize("name", SPELLINGS | VARIANTS)
def test_without_an_alpha_the_scale_is_one(table, tmp_path, name):
    lora = random_lora(table, MODULES, ranks=(2, 4))
    same(read_lora(write_layout(tmp_path / "a.safetensors", lora, name, alphas=False), table), lora)


def test_the_alpha_that_peft_writes_beside_its_file(table, tmp_path):
    lora = random_lora(table, MODULES, ranks=(4,), scale=0.5)
    file = write_layout(tmp_path / "adapter_model.safetensors", lora, "peft alone", alphas=False)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 2, "rank_pattern": None}))
    same(read_lora(file, table), lora)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(LoRAError, match=r"adapter_config\.json: holds no JSON object"):
        read_lora(file, table)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_stored_dtypes(table, tmp_path, dtype):
    tensors = {k: x.astype(dtype) for k, x in tensors_of(random_lora(table, MODULES), "lightning", alphas=True).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    for module, change in read_lora(tmp_path / "a.safetensors", table).changes.items():
        np.testing.assert_array_equal(change.a, tensors[f"{module}.lora_down.weight"].astype(np.float32).T)
        np.testing.assert_array_equal(change.b, tensors[f"{module}.lora_up.weight"].astype(np.float32).T)


@pytest.mark.parametrize("alpha", [1, 7, 16, 0.1, 1 / 3, 1e-3, 123.456])
@pytest.mark.parametrize("rank", [1, 3, 7, 11])
@pytest.mark.full
def test_a_round_trip_keeps_everything(table, tmp_path, alpha, rank):
    lora = random_lora(table, MODULES, ranks=(rank, 2), scale=alpha / rank)
    lora = dataclasses.replace(lora, origin={"stage": "decomposition", "step": 400})
    files = [tmp_path / f"{i}.safetensors" for i in range(2)]
    write_lora(files[0], lora)
    first = read_lora(files[0], table)
    write_lora(files[1], first)
    assert files[0].read_bytes() == files[1].read_bytes()
    second = read_lora(files[1], table)
    same(second, first)
    assert second.origin == {"stage": "decomposition", "step": 400}
    some = [module for i, module in enumerate(MODULES) if i % 2 == 0]
    for module in some:
        assert second.changes[module].scale == alpha / rank and second.changes[module].a.shape[1] == rank


def test_a_bf16_file_round_trips_through_fp32(table, tmp_path):
    save_file(in_bf16(tensors_of(random_lora(table, MODULES), "kohya", alphas=True)), tmp_path / "a.safetensors")
    first = read_lora(tmp_path / "a.safetensors", table)
    write_lora(tmp_path / "b.safetensors", first, "bfloat16")
    write_lora(tmp_path / "c.safetensors", first)
    for name in "bc":
        same(read_lora(tmp_path / f"{name}.safetensors", table), first)
    assert {x.dtype.name for x in load_file(tmp_path / "b.safetensors").values()} == {"bfloat16"}


def test_what_is_written(table, tmp_path):
    lora = dataclasses.replace(random_lora(table, ["img_in"], ranks=(3,), scale=0.5), origin={"stage": "x", "step": 1})
    write_lora(tmp_path / "deep" / "a.safetensors", lora)
    with safe_open(tmp_path / "deep" / "a.safetensors", "np") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and json.loads(metadata["qil_jax.origin"]) == {"stage": "x", "step": 1}
    config = json.loads(metadata["lora_adapter_metadata"])
    assert config["transformer.r"] == 3 and config["transformer.lora_alpha"] == 1.5
    tensors = load_file(tmp_path / "deep" / "a.safetensors")
    assert {k: x.shape for k, x in tensors.items()} == {
        "transformer.img_in.lora_A.weight": (3, 64),
        "transformer.img_in.lora_B.weight": (64, 3),
    }
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.safetensors"]


def test_what_cannot_be_written(table, tmp_path):
    lora, file = random_lora(table, ["img_in"]), tmp_path / "a.safetensors"
    file.write_text("precious")
    change = lora.changes["img_in"]
    torn = {"img_in": dataclasses.replace(change)}
    object.__setattr__(torn["img_in"], "b", np.zeros((3, 64), np.float32))  # past the check of shapes in tests
    backward = {"img_in": dataclasses.replace(change, scale=-1.0)}
    for where, what, dtype, says in (
        (file, lora, "float32", "exists: give another file"),
        (tmp_path / "a.bin", lora, "float32", "must end in .safetensors"),
        (tmp_path / "b.safetensors", LoRA(changes={}, origin={}), "float32", "nothing to write"),
        (tmp_path / "b.safetensors", lora, "int8", "dtype must be one of bfloat16, float16, float32"),
        (tmp_path / "b.safetensors", LoRA(changes=torn, origin={}), "float32", "factors of ranks 4 and 3"),
        (tmp_path / "b.safetensors", LoRA(changes=backward, origin={}), "float32", "the scale be positive"),
    ):
        with pytest.raises(LoRAError, match=says):
            write_lora(where, what, dtype)
    assert file.read_text() == "precious" and list(tmp_path.iterdir()) == [file]


def test_a_failed_write_leaves_nothing(table, tmp_path):
    class Failing(dict):
        def items(self):
            yield from super().items()
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 2:  # the headers are written in the first round, the factors in the second
                raise OSError("no space left")

    changes = Failing(random_lora(table, MODULES).changes)
    with pytest.raises(OSError, match="no space left"):
        write_lora(tmp_path / "a.safetensors", LoRA(changes=changes, origin={}))
    assert list(tmp_path.iterdir()) == []


def load(checkpoint, loras=(), sharding=None, *, dtype=None) -> dict[str, np.ndarray]:
    sharding = sharding or Sharding(single_device_mesh(), INFERENCE_RULES)
    model = Checkpoint(checkpoint).load(Component.TRANSFORMER, sharding, dtype=dtype, loras=loras)
    return {slashed(path): np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def summed(checkpoint, table, loras) -> dict[str, np.ndarray]:
    """All parameters in fp64 with the changes added, from the definition."""
    source, sums = Checkpoint(checkpoint)[Component.TRANSFORMER].source(), {}
    for path, target in targets(table).items():
        whole = source.read(target, tuple(slice(0, n) for n in target.shape)).astype(np.float64)
        for i, entry in enumerate(target.entries):
            for lora, scale in loras:
                change = lora.changes.get(entry.name.removesuffix(".weight"))
                if change is not None and entry.name.endswith(".weight"):
                    delta = scale * change.scale * (change.a.astype(np.float64) @ change.b.astype(np.float64))
                    part = whole if entry.block is None else whole[i]
                    part += delta
        sums[path] = whole
    return sums


@pytest.fixture(scope="module")
def loras(table):
    first = random_lora(table, MODULES, ranks=(4, 7), scale=0.5, seed=1)
    return [(first, 1.0), (random_lora(table, block_modules(1), ranks=(3,), scale=2.0, seed=2), -0.6)]


def test_kernels_are_sums(checkpoint, table, loras):
    before, after, expected = load(checkpoint, dtype=jnp.float32), load(checkpoint, loras, dtype=jnp.float32), {}
    expected = summed(checkpoint, table, loras)
    changed = 0
    for path, x in after.items():
        if path.endswith("/kernel"):
            assert np.abs(x - before[path]).max() > 0.01, path
            changed += 1
        np.testing.assert_allclose(x, expected[path], rtol=0, atol=1e-6, err_msg=path)
        if not path.endswith("/kernel"):
            np.testing.assert_array_equal(x, before[path])
    assert changed == 20


def test_a_sum_is_rounded_once(checkpoint, table, loras):
    """Nearest to the sum in bf16: half a unit in the last place, which two roundings would exceed somewhere."""
    after, expected = load(checkpoint, loras, dtype=jnp.bfloat16), summed(checkpoint, table, loras)
    for path, x in after.items():
        assert x.dtype == ml_dtypes.bfloat16
        unit = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(expected[path]), 1e-30))) - 7)
        assert (np.abs(x.astype(np.float64) - expected[path]) <= 0.5 * unit + 1e-6).all(), path


@pytest.mark.parametrize("rules", [INFERENCE_RULES, TRAINING_RULES])
@pytest.mark.parametrize("text", ["fsdp=8", "data=4,tensor=2", "fsdp=2,tensor=4", "fsdp=2,context=2,tensor=2"])
@pytest.mark.full
def test_shards_equal_the_whole(checkpoint, loras, text, rules):
    sharding = Sharding(make_mesh(MeshShape.parse(text)), rules)
    whole, shards = load(checkpoint, loras), load(checkpoint, loras, sharding)
    assert whole.keys() == shards.keys()
    for path, x in whole.items():
        np.testing.assert_allclose(shards[path], x, rtol=0, atol=2e-6, err_msg=path)


@pytest.mark.full
def test_orbax_checkpoints_too(checkpoint, loras, tmp_path):
    to_orbax(checkpoint, tmp_path / "orbax")
    for dtype in (None, jnp.bfloat16):
        one, other = load(checkpoint, loras, dtype=dtype), load(tmp_path / "orbax", loras, dtype=dtype)
        for path, x in one.items():
            np.testing.assert_array_equal(other[path], x)


def test_a_scale_of_zero_changes_no_bit(checkpoint, loras):
    before, after = load(checkpoint), load(checkpoint, [(loras[0][0], 0.0)])
    for path, x in before.items():
        np.testing.assert_array_equal(after[path], x)


@pytest.mark.full
def test_what_cannot_be_added(checkpoint, table, loras, monkeypatch):
    def untouched(*_):
        pytest.fail("a tensor was read")

    other = LoRA(changes={"blocks.0.attn": loras[0][0].changes["img_in"]}, origin={})
    sharding = Sharding(single_device_mesh(), INFERENCE_RULES)
    monkeypatch.setattr(TensorReader, "__getitem__", untouched)
    for component in (Component.VAE, Component.TEXT_ENCODER):
        with pytest.raises(LoRAError, match="change the transformer only"):
            Checkpoint(checkpoint).load(component, sharding, loras=loras)  # pyright: ignore[reportCallIssue]
    with pytest.raises(LoRAError, match="LoRA 2: 1 modules are not in this transformer, such as blocks"):
        load(checkpoint, [loras[0], (other, 1.0)])
    with pytest.raises(LoRAError, match="LoRA 1: its scale must be a finite number, got nan"):
        load(checkpoint, [(loras[0][0], float("nan"))])
    monkeypatch.undo()
    wide = {"txt_in": loras[0][0].changes["norm_out.linear"]}
    with pytest.raises(LoRAError, match="txt_in: a change of shape"):
        load(checkpoint, [(LoRA(changes=wide, origin={}), 1.0)])
