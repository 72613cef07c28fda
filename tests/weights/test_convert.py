"""Checkpoints to orbax and back: bit for bit, at the released widths, and readable by everybody else's loaders."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from checkpoints import tiny_text_encoder, tiny_transformer, tiny_vae
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from qil_jax.cli import convert
from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import Request, Settings
from qil_jax.programs import ended
from qil_jax.weights import Checkpoint
from qil_jax.weights.convert import ConversionError, to_diffusers, to_orbax
from qil_jax.weights.safetensors_io import ShardedWriter, TensorPlan, TensorReader, read_headers, weight_files
from qil_jax.weights.tables import table_of
from qil_jax.weights.tables.entries import Component, targets
from tools.bench.convert import shallow, unlike, write_noise
from tools.make_demo_checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def build_source(folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """A tiny checkpoint whose components the reference classes wrote; of few words, or most of it were embeddings."""
    write_checkpoint(folder)
    modules = (tiny_transformer(), tiny_vae(), tiny_text_encoder(vocab_size=600))
    for component, module in zip(("transformer", "vae", "text_encoder"), modules, strict=True):
        shutil.rmtree(folder / component)
        module.to(dtype).save_pretrained(folder / component)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Released layout, orbax, and back again."""
    folders = tuple(tmp_path_factory.mktemp("tiny") / part for part in ("source", "orbax", "back"))
    build_source(folders[0])
    (folders[0] / "README.md").write_text("kept")
    (folders[0] / "transformer" / "pytorch_model.bin").write_bytes(b"never copied")
    to_orbax(*folders[:2])
    to_diffusers(*folders[1:])
    return folders


@pytest.mark.full
def test_full_width_is_bit_exact(tmp_path):
    configs = shallow(1)
    configs[Component.TEXT_ENCODER]["vocab_size"] = 1000
    write_noise(tmp_path / "source", configs, shard_bytes=300_000_000)
    assert len(weight_files(tmp_path / "source" / "transformer")) > 1
    to_orbax(tmp_path / "source", tmp_path / "orbax")
    Checkpoint(tmp_path / "orbax").require_sound()
    to_diffusers(tmp_path / "orbax", tmp_path / "back")
    Checkpoint(tmp_path / "back").require_sound()
    assert unlike(tmp_path / "source", tmp_path / "back") == []
    names = read_headers(weight_files(tmp_path / "back" / "vae"))
    assert len(names) == 194 and any("time_conv" in name for name in names)


@pytest.mark.full
def test_unlike_sees_one_flipped_bit(tiny, tmp_path):
    source, _, back = tiny
    assert unlike(source, back) == []
    file = back / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    copy = tmp_path / "copy"
    for component in Component:
        (copy / component).mkdir(parents=True)
        for weights in weight_files(back / component):
            (copy / component / weights.name).write_bytes(data if weights == file else weights.read_bytes())
    assert len(unlike(source, copy)) == 1


def test_every_other_file_travels_along(tiny):
    source, orbax, back = tiny
    weights = (".safetensors", ".index.json", ".bin")
    plain = {f.relative_to(source) for f in source.rglob("*") if f.is_file() and not f.name.endswith(weights)}
    assert Path("README.md") in plain and Path("vae/config.json") in plain
    for folder in (orbax, back):
        assert all((folder / file).read_bytes() == (source / file).read_bytes() for file in plain)
        assert not list(folder.rglob("*.bin"))
        assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_the_reference_libraries_load_what_comes_back(tiny):
    source, _, back = tiny
    for kind, component in (
        (QwenImageTransformer2DModel, "transformer"),
        (AutoencoderKLQwenImage, "vae"),
        (Qwen2_5_VLForConditionalGeneration, "text_encoder"),
    ):
        loaded = [kind.from_pretrained(folder / component).state_dict() for folder in (source, back)]
        assert loaded[0].keys() == loaded[1].keys()
        assert all(torch.equal(loaded[0][name], loaded[1][name]) for name in loaded[0])


def test_orbax_itself_restores_the_tree(tiny):
    source, orbax, _ = tiny
    for component in Component:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore((orbax / component / "params").absolute())
        flat = {"/".join(path): leaf for path, leaf in _leaves(tree)}
        table = table_of(component, json.loads((source / component / "config.json").read_text()))
        wanted = targets(table)
        assert flat.keys() == wanted.keys()
        stored = TensorReader(read_headers(weight_files(source / component)))
        for path, target in wanted.items():
            entry = target.entries[-1]
            part = flat[path] if entry.block is None else flat[path][entry.block]
            name = entry.name if entry.name in stored.tensors else _in_memory(entry.name)
            np.testing.assert_array_equal(part, entry.transform.forward(stored[name]))


def _leaves(tree, path=()):
    for name, node in tree.items():
        if isinstance(node, dict):
            yield from _leaves(node, (*path, name))
        else:
            yield (*path, name), node


def _in_memory(name: str) -> str:
    return f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)


@pytest.mark.full
def test_both_layouts_give_the_same_layers(tiny):
    same_layers(*tiny[:2])


def same_layers(*folders: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 4), np.uint8))
    request = Request(image=picture, layers=2, prompt="a cat", resolution=64)
    pair = [Pipeline.load(folder).decompose([request], Settings(steps=2))[0] for folder in folders]
    np.testing.assert_array_equal(pair[0].latents, pair[1].latents)


@pytest.mark.full
def test_bf16_stays_bf16(tmp_path):
    """A checkpoint in the released precision: no bit changes on the way there and back, nor does a layer."""
    source, orbax, back = (tmp_path / name for name in ("source", "orbax", "back"))
    build_source(source, torch.bfloat16)
    to_orbax(source, orbax)
    to_diffusers(orbax, back)
    for component in Component:
        dtypes = {info.dtype.name for info in read_headers(weight_files(back / component)).values()}
        assert dtypes == {"bfloat16"}
    assert unlike(source, back) == []
    same_layers(source, orbax)


def test_nothing_is_overwritten_unasked(tiny, tmp_path):
    source, orbax, _ = tiny
    with pytest.raises(ConversionError, match="exists; give another folder, or --overwrite"):
        to_orbax(source, orbax)
    other = tmp_path / "holiday"
    other.mkdir()
    (other / "photo.jpg").write_text("precious")
    with pytest.raises(ConversionError, match="holds no checkpoint and is left alone"):
        to_orbax(source, other, overwrite=True)
    assert (other / "photo.jpg").read_text() == "precious"
    for inside in (source / "orbax", source):
        with pytest.raises(ConversionError, match=r"lies inside the source|contains the source"):
            to_orbax(source, inside, overwrite=True)
    with pytest.raises(ConversionError, match="not stored as diffusers; the other direction"):
        to_orbax(orbax, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.full
def test_a_failed_conversion_leaves_the_old_result_whole(tiny, tmp_path, monkeypatch):
    source = tiny[0]
    destination = tmp_path / "orbax"
    to_orbax(source, destination)
    before = {f.relative_to(destination): f.read_bytes() for f in destination.rglob("*") if f.is_file()}

    def broken(done: int, total: int) -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        to_orbax(source, destination, overwrite=True, on_bytes=broken)
    assert {f.relative_to(destination): f.read_bytes() for f in destination.rglob("*") if f.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["orbax"]
    to_orbax(source, destination, overwrite=True)
    Checkpoint(destination).require_sound()


KILLED = """
import os, pathlib, sys
import qil_jax.weights.convert as convert
from qil_jax.cli.convert import main
rename, moment, argv = pathlib.Path.rename, sys.argv[1], sys.argv[2:]
kill = lambda *_: os.kill(os.getpid(), 9)
if moment == "among the tensors":
    convert._copy_to_array = kill
else:  # the old folder is moved aside, the new one is not in its place yet
    pathlib.Path.rename = lambda self, to: kill() if self.name == "content" else rename(self, to)
main(argv)
"""


@pytest.mark.parametrize("moment", ["among the tensors", "between the renames"])
@pytest.mark.full
def test_what_a_killed_conversion_left_is_put_right_at_the_next(tiny, tmp_path, moment, capsys):
    source, destination = tiny[0], tmp_path / "orbax"
    words = ["to-orbax", str(source), str(destination), "--overwrite"]
    assert convert.main(words) == 0
    before = {f.relative_to(destination): f.read_bytes() for f in destination.rglob("*") if f.is_file()}
    killed = subprocess.run([sys.executable, "-c", KILLED, moment, *words], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert len(list(tmp_path.iterdir())) == 1 + (moment == "among the tensors")
    assert ended(convert.main, words[:-1]) == 2
    assert "exists" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["orbax"]
    assert {f.relative_to(destination): f.read_bytes() for f in destination.rglob("*") if f.is_file()} == before
    assert convert.main(words) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["orbax"]
    Checkpoint(destination).require_sound()


@pytest.mark.full
def test_folders_of_other_names_are_nobodys_left_overs(tiny, tmp_path):
    """What earlier versions took for their own: DESTINATION.unfinished and DESTINATION.replaced."""
    source, destination = tiny[0], tmp_path / "orbax"
    others = [tmp_path / f"orbax.{suffix}" / "precious" for suffix in ("unfinished", "replaced")]
    for file in others:
        file.parent.mkdir()
        file.write_text("kept")
    words = ["to-orbax", str(source), str(destination)]
    assert convert.main(words) == 0
    assert convert.main([*words, "--overwrite"]) == 0
    Checkpoint(destination).require_sound()
    assert [file.read_text() for file in others] == ["kept", "kept"]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.full
def test_the_rows_of_a_cut_tensor_meet(tiny, tmp_path, monkeypatch):
    """Pieces far smaller than a tensor, so that every transform is cut between rows."""
    source = tiny[0]
    monkeypatch.setattr("qil_jax.weights.pieces.PIECE_BYTES", 1 << 12)
    to_orbax(source, tmp_path / "orbax")
    Checkpoint(tmp_path / "orbax").require_sound()
    to_diffusers(tmp_path / "orbax", tmp_path / "back")
    assert unlike(source, tmp_path / "back") == []


def test_wrong_pieces_are_refused(tmp_path):
    plan = TensorPlan(name="a", dtype=np.dtype(np.float32), shape=(4, 3))
    writer = ShardedWriter(tmp_path, "model", [plan])
    for piece, first in (
        (np.zeros((2, 3), np.float16), 0),
        (np.zeros((2, 2), np.float32), 0),
        (np.zeros((2, 3), np.float32), 3),
    ):
        with pytest.raises(ValueError, match="does not fit"):
            writer.write("a", piece, first=first)
    whole = np.arange(12, dtype=np.float32).reshape(4, 3)
    writer.write("a", whole[2:], first=2)
    writer.write("a", whole[:2])
    writer.close()
    np.testing.assert_array_equal(load_file(tmp_path / "model.safetensors")["a"], whole)


@pytest.mark.full
def test_wan_names_and_a_prefix_convert_to_released_names(tiny, tmp_path):
    source = shutil.copytree(tiny[0], tmp_path / "source")
    file = source / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({f"model.diffusion_model.{name}": x for name, x in tensors.items()}, file)
    to_orbax(source, tmp_path / "orbax")
    to_diffusers(tmp_path / "orbax", tmp_path / "back")
    again = load_file(tmp_path / "back" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.full
def test_a_destination_may_lead_through_the_folder_above(tiny, tmp_path, monkeypatch):
    """The store of arrays takes no path with dots, and once said so in a traceback."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert ended(convert.main, ["to-orbax", str(tiny[0]), "../orbax"]) == 0
    Checkpoint(Path("../orbax")).require_sound()
    assert ended(convert.main, ["to-diffusers", "../orbax", "../back"]) == 0
    assert unlike(tiny[0], tmp_path / "back") == []


@pytest.mark.full
def test_command_line(tiny, tmp_path, capsys):
    source, orbax, _ = tiny
    assert convert.main(["to-orbax", str(source), str(tmp_path / "orbax")]) == 0
    assert "MB in" in capsys.readouterr().out
    command = [sys.executable, ROOT / "tools" / "convert.py", "to-orbax", source, orbax]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and "--overwrite" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert ended(convert.main, ["to-orbax", str(tmp_path / "nowhere"), str(tmp_path / "x")]) == 2
