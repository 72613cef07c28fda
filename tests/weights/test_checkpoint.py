"""A checkpoint is opened once: what follows from its files is read and made once, and nothing else is kept."""

import gc
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from counting import Counts
from flax import nnx
from PIL import Image

from qil_jax.cli import convert
from qil_jax.cli.decompose import main as infer
from qil_jax.mesh import INFERENCE_RULES, Sharding, single_device_mesh
from qil_jax.models.config import ConfigError
from qil_jax.models.lora import add_lora
from qil_jax.shipped import shipped_checkpoint
from qil_jax.weights import Checkpoint, Component, Layout, StructureError, TextEncoderPart
from qil_jax.weights.convert import to_orbax
from tools.make_demo_checkpoint import write_checkpoint

FILES = {
    "text_encoder/config.json": 1,
    "text_encoder/model.safetensors": 1,
    "transformer/config.json": 1,
    "transformer/diffusion_pytorch_model.safetensors": 1,
    "vae/config.json": 1,
    "vae/diffusion_pytorch_model.safetensors": 1,
}
ONCE = dict.fromkeys(("MMDiTConfig", "VAEConfig", "Qwen2_5VLConfig"), 1)
ONCE |= dict.fromkeys(("transformer_table", "vae_table", "text_encoder_table"), 1)
MODULES = dict.fromkeys(("VLDMMDiT", "RGBAVAE", "TextEncoder"), 1)


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "released"
    write_checkpoint(folder)
    return folder


@pytest.fixture
def copy(released, tmp_path) -> Path:
    """A checkpoint that a test may change."""
    return Path(shutil.copytree(released, tmp_path / "copy"))


def sharding() -> Sharding:
    return Sharding(single_device_mesh(), INFERENCE_RULES)


def open_files(folder: Path) -> list[str]:
    """The files of a folder that this process has open or mapped into its memory."""
    links = [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()]
    maps = [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    return [path for path in (*links, *maps) if path.startswith(f"{folder.resolve()}/")]


def test_all_follows_from_one_reading(released, monkeypatch):
    counts = Counts(released, monkeypatch)
    checkpoint = Checkpoint.open(released)
    for _ in range(2):
        checkpoint.require_sound()
        assert checkpoint.transformer.in_channels == checkpoint.vae.z_dim * checkpoint.transformer.patch_size**2
        assert checkpoint.text_encoder.hidden_size == checkpoint.transformer.joint_attention_dim
        assert checkpoint.schedule and checkpoint.tokenizer and not checkpoint.has_vision
        for component in Component:
            stored = checkpoint[component]
            assert stored.table is stored.table and stored.layout is Layout.DIFFUSERS
            assert {*stored.dtypes()} <= {entry.name for entry in stored.table}
            assert checkpoint.abstract(component) is not checkpoint.abstract(component)
            assert checkpoint.abstract(component, sharding())
    assert counts.of_weights() == FILES and counts.made == ONCE | MODULES
    once = ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json")
    assert [counts.parsed[name] for name in once] == [1, 1, 1]


def test_a_module_is_its_callers_own(released):
    checkpoint, paths = Checkpoint(released), []
    loaded = checkpoint.load(Component.TRANSFORMER, sharding())
    changed = checkpoint.abstract(Component.TRANSFORMER)
    assert add_lora(changed, rank=2, alpha=2.0, targets=lambda path: True)
    for model in (checkpoint.abstract(Component.TRANSFORMER), Checkpoint(released).abstract(Component.TRANSFORMER)):
        flat = nnx.to_flat_state(nnx.state(model))
        assert {type(leaf.get_value()) for _, leaf in flat} == {jax.ShapeDtypeStruct}
        paths.append([path for path, _ in flat])
    assert paths[0] == paths[1] == [path for path, _ in nnx.to_flat_state(nnx.state(loaded))]
    again = checkpoint.load(Component.TRANSFORMER, sharding())
    for one, other in zip(jax.tree.leaves(nnx.state(loaded)), jax.tree.leaves(nnx.state(again)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_parts_of_the_text_encoder_are_modules_of_their_own(released):
    checkpoint = Checkpoint(released)
    whole, language = (checkpoint.abstract(part) for part in (TextEncoderPart.VISION_LANGUAGE, Component.TEXT_ENCODER))
    held = [{path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))} for model in (whole, language)]
    assert held[1] < held[0]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts open files by Linux's /proc")
@pytest.mark.parametrize("layout", [Layout.DIFFUSERS, pytest.param(Layout.ORBAX, marks=pytest.mark.full)])
def test_no_file_stays_open_and_no_array_is_kept(released, tmp_path, layout):
    folder = released
    if layout is Layout.ORBAX:
        folder = tmp_path / "orbax"
        to_orbax(released, folder)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint[Component.VAE].layout is layout and not open_files(folder)
    source, (target, *_) = checkpoint[Component.VAE].source(), checkpoint[Component.VAE].targets.values()
    assert source.read(target, tuple(map(slice, target.shape))).shape == target.shape
    assert bool(open_files(folder)) is (layout is Layout.DIFFUSERS)  # mapped as long as the source lives
    before = {id(x) for x in jax.live_arrays()}
    model = checkpoint.load(Component.VAE, sharding())
    assert {id(x) for x in jax.live_arrays()} - before
    del source, model
    gc.collect()
    assert not open_files(folder) and not {id(x) for x in jax.live_arrays()} - before


def test_it_shows_the_folder_as_it_was(copy):
    checkpoint, file = Checkpoint.open(copy), copy / "vae" / "config.json"
    mark, channels = checkpoint.fingerprint(), checkpoint.vae.input_channels
    file.write_text(json.dumps(json.loads(file.read_text()) | {"input_channels": 3}))
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    checkpoint.require_sound()
    assert (checkpoint.fingerprint(), checkpoint.vae.input_channels) == (mark, channels) == (mark, 4)
    anew = Checkpoint(copy)
    assert anew.vae.input_channels == 3 and anew.fingerprint() != mark
    with pytest.raises(StructureError, match="no safetensors file"):
        anew.require_sound()


def test_what_failed_is_tried_again(copy):
    """Only what was read is kept: a file that appears later is found."""
    checkpoint, file = Checkpoint(copy), copy / "vae" / "config.json"
    file.rename(copy / "aside")
    with pytest.raises(ConfigError, match=r"vae/config\.json: missing"):
        _ = checkpoint.vae
    (copy / "aside").rename(file)
    assert checkpoint.vae.z_dim


def test_fingerprints_are_of_their_parts(copy):
    checkpoint = Checkpoint(copy)
    before = checkpoint.fingerprint(), checkpoint.fingerprint("vae"), checkpoint.fingerprint("transformer")
    assert (
        len({*before}) == 3 and checkpoint.fingerprint(*Component, "scheduler", "tokenizer", "processor") == before[0]
    )
    with (copy / "vae" / "config.json").open("a") as stream:
        stream.write(" ")
    after = Checkpoint(copy)
    assert after.fingerprint("transformer") == before[2]
    assert after.fingerprint() != before[0] and after.fingerprint("vae") != before[1]


def test_a_folder_may_lack_what_is_not_asked_for(copy):
    for name in ("transformer", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(copy / name)
    checkpoint = Checkpoint(copy)
    assert checkpoint.load(Component.VAE, sharding()).config == checkpoint.vae
    with pytest.raises(StructureError, match=r"transformer/config\.json: missing"):
        Checkpoint.open(copy)


def test_layered_architectures(copy):
    file = copy / "vae" / "config.json"
    architecture = Checkpoint(copy)[Component.VAE].architecture
    assert architecture.layered is architecture
    file.write_text(json.dumps(json.loads(file.read_text()) | {"input_channels": 3}))
    architecture = Checkpoint(copy)[Component.VAE].architecture
    assert architecture.config.input_channels == 3 and architecture.layered.config.input_channels == 4
    assert architecture.layered is architecture.layered


@pytest.mark.full
def test_a_picture_reads_its_checkpoint_once(tmp_path, monkeypatch):
    Image.effect_noise((64, 64), 80).convert("RGB").save(tmp_path / "noise.png")
    counts = Counts(shipped_checkpoint(), monkeypatch)
    assert infer([str(tmp_path / "noise.png"), "--out", str(tmp_path / "out"), "--steps", "2"]) == 0
    assert counts.of_weights() == FILES and counts.made == ONCE | MODULES


@pytest.mark.full
def test_a_conversion_reads_its_source_once(released, tmp_path, monkeypatch):
    counts = Counts(released, monkeypatch)
    assert convert.main(["to-orbax", str(released), str(tmp_path / "orbax")]) == 0
    assert counts.of_weights() == FILES and counts.made == ONCE
