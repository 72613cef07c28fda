"""LoRAs in inference: how they are named, refused before any compute, applied, and kept apart in results."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from loras import TIMESTEP, TOP, block_modules, random_lora, write_layout
from PIL import Image

from qil_jax.cli.decompose import main
from qil_jax.cli.decompose_arguments import parse_arguments, scaled_file
from qil_jax.export.result import ResultError
from qil_jax.inference.checkpoint import LayeredCheckpoint
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.job import is_finished, plan_results
from qil_jax.inference.pictures import find_pictures
from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import JobOptions, Request, Settings
from qil_jax.weights import Checkpoint, Component, LoRAError, write_lora
from qil_jax.weights.released import CONFIGS
from qil_jax.weights.tables import table_of
from tools.make_demo_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint, two LoRAs of it, and one of the released transformer."""
    folder = tmp_path_factory.mktemp("demo")
    write_checkpoint(folder / "checkpoint")
    table = Checkpoint(folder / "checkpoint")[Component.TRANSFORMER].table
    modules = [*block_modules(0), *block_modules(1), *TOP, *TIMESTEP]
    write_lora(folder / "a:b.safetensors", random_lora(table, modules, ranks=(4,), scale=0.5, seed=1, strength=1.0))
    second = random_lora(table, block_modules(1), ranks=(2,), scale=2.0, seed=2, strength=1.0)
    write_layout(folder / "second.safetensors", second, "kohya")
    released = table_of(Component.TRANSFORMER, CONFIGS[Component.TRANSFORMER])
    write_layout(folder / "other.safetensors", random_lora(released, ["img_in", "proj_out"], ranks=(1,)), "lightning")
    return folder


@pytest.mark.parametrize(
    ("text", "file", "scale"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.7", "a.safetensors", 0.7),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("a.safetensors:1e-2", "a.safetensors", 0.01),
        ("a.safetensors:.5", "a.safetensors", 0.5),
        ("a:b.safetensors", "a:b.safetensors", 1.0),
        ("a:b.safetensors:2", "a:b.safetensors", 2.0),
        ("C:\\loras\\a.safetensors", "C:\\loras\\a.safetensors", 1.0),
        ("C:\\loras\\a.safetensors:0", "C:\\loras\\a.safetensors", 0.0),
        ("a.safetensors:", "a.safetensors:", 1.0),
        ("a.safetensors:nan", "a.safetensors:nan", 1.0),
        ("a.safetensors:1_0", "a.safetensors:1_0", 1.0),
    ],
)
def test_only_a_number_at_the_end_is_a_scale(text, file, scale):
    assert scaled_file(text) == (Path(file), scale)


def test_bad_options_are_told_together(folder, capsys):
    words = ["a.png", "--checkpoint", folder / "checkpoint", "--out", "x", "--steps", 0]
    words += ["--lora", folder / "none.safetensors:2", "--lora", f"{folder / 'second.safetensors'}:1e999"]
    with pytest.raises(SystemExit) as caught:
        parse_arguments([str(word) for word in words])
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert "--steps must be at least 1" in said
    assert f"--lora {folder / 'none.safetensors'}: no such file" in said
    assert f"--lora {folder / 'second.safetensors'}: the scale must be a finite number, got inf" in said


def words(folder, picture, out, *loras) -> list[str]:
    given = [picture, "--checkpoint", folder / "checkpoint", "--out", out, "--layers", 2, "--steps", 2]
    given += ["--resolution", 64, *(word for lora in loras for word in ("--lora", lora))]
    return [str(word) for word in given]


def infer(folder, picture, out, *loras, capsys) -> tuple[int, str]:
    status = main(words(folder, picture, out, *loras))
    said = capsys.readouterr()
    return status, said.out + said.err


def layers(out: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted((out / "b").glob("0*.png"))]).astype(int)


def loras_of(folder: Path) -> dict[str, list[str]]:
    first, second = folder / "a:b.safetensors", folder / "second.safetensors"
    return {
        "plain": [],
        "zero": [f"{first}:0", f"{second}:0"],
        "both": [f"{first}:0.5", str(second)],
        "more": [f"{first}:1.0", str(second)],
        "one": [f"{first}:0.5"],
    }


@pytest.fixture(scope="module")
def results(folder) -> Path:
    """The results of one picture with different LoRAs, in folders of their names."""
    picture = folder / "b.png"
    Image.new("RGB", (64, 48), "red").save(picture)
    for name, loras in loras_of(folder).items():
        assert main(words(folder, picture, folder / "results" / name, *loras)) == 0
    return folder / "results"


@pytest.mark.full
def test_the_program(folder, results, capsys):
    picture, runs = folder / "b.png", loras_of(folder)
    made = {name: layers(results / name) for name in runs}
    np.testing.assert_array_equal(made["plain"], made["zero"])
    for name, other in (("plain", "both"), ("both", "more"), ("both", "one"), ("plain", "one")):
        assert np.abs(made[name] - made[other]).mean() > 0.5, (name, other)

    record = json.loads((results / "both" / "b" / "result.json").read_text())
    assert [(lora["file"], lora["scale"]) for lora in record["loras"]] == [
        ("a:b.safetensors", 0.5),
        ("second.safetensors", 1.0),
    ]
    assert all(len(lora["sha256"]) == 64 for lora in record["loras"])
    assert "loras" not in json.loads((results / "plain" / "b" / "result.json").read_text())

    status, said = infer(folder, picture, results / "both", *runs["both"], capsys=capsys)
    assert status == 0 and said.count("already finished") == 1
    for there, now in (("both", "more"), ("both", "plain"), ("plain", "one")):
        status, said = infer(folder, picture, results / there, *runs[now], capsys=capsys)
        assert status == 2 and "was made with LoRAs of sha256 and scale" in said, (there, now, said)


@pytest.mark.full
def test_a_renamed_lora_is_the_same_and_a_changed_one_another(folder, results, tmp_path, capsys):
    renamed, changed = tmp_path / "renamed.safetensors", tmp_path / "a:b.safetensors"
    shutil.copyfile(folder / "a:b.safetensors", renamed)
    shutil.copyfile(folder / "second.safetensors", changed)
    status, said = infer(folder, folder / "b.png", results / "one", f"{renamed}:0.5", capsys=capsys)
    assert status == 0 and "already finished" in said
    status, said = infer(folder, folder / "b.png", results / "one", f"{changed}:0.5", capsys=capsys)
    assert status == 2 and "was made with LoRAs" in said


@pytest.mark.full
def test_a_result_that_names_no_loras_has_none(folder, results):
    """As all results of earlier versions; what they are compared by is what it was."""
    out = results / "plain"
    record = json.loads((out / "b" / "result.json").read_text())
    made_from = {"checkpoint": record["checkpoint"], "settings": record["settings"]}
    found = find_pictures([folder / "b.png"]).pictures
    (planned,) = plan_results(found, out, JobOptions(layers=2).filled(Defaults()), **made_from)
    assert is_finished(planned)
    lora = {"file": "a", "sha256": "0", "scale": 1.0}
    (planned,) = plan_results(found, out, JobOptions(layers=2).filled(Defaults()), loras=[lora], **made_from)
    with pytest.raises(ResultError, match=r"LoRAs of sha256 and scale \[\], now \[\['0', 1.0\]\]"):
        is_finished(planned)


@pytest.mark.full
def test_everything_wrong_is_one_refusal(folder, pictures, tmp_path, capsys):
    (pictures / "broken.png").write_bytes(b"x")
    (tmp_path / "damaged.safetensors").write_bytes(b"x" * 100)
    loras = [folder / "other.safetensors", folder / "second.safetensors", tmp_path / "damaged.safetensors"]
    status, said = infer(folder, pictures, tmp_path / "out", *loras, capsys=capsys)
    assert status == 2 and "Traceback" not in said and not (tmp_path / "out").exists()
    for words in ("broken.png", "--skip-bad", "other.safetensors: 2 of its 6 keys", "damaged.safetensors: no safetens"):
        assert words in said, said
    assert "second.safetensors" not in said
    status, said = infer(folder, pictures / "b.png", tmp_path / "out", *loras, capsys=capsys)
    assert status == 2 and "cannot use the LoRA" in said and "proj_out.lora_down.weight" in said


@pytest.mark.full
def test_python(folder, pictures):
    """`Pipeline.load` with the files that `qil decompose` takes; `LayeredCheckpoint.open` names all unusable ones."""
    request = Request(image=Image.open(pictures / "b.png"), layers=2, resolution=64)
    loras = [(folder / "a:b.safetensors", 0.5), (str(folder / "second.safetensors"), 1.0)]
    made = [
        Pipeline.load(folder / "checkpoint", loras=given).decompose([request], Settings(steps=2))[0].latents
        for given in ([], loras, loras[::-1])
    ]
    assert np.abs(made[0] - made[1]).max() > 0.1
    assert np.abs(made[1] - made[2]).max() < 1e-3
    with pytest.raises(LoRAError) as caught:
        LayeredCheckpoint.open(
            folder / "checkpoint", loras=[(folder / "other.safetensors", 1.0), ("none", float("inf"))]
        )
    said = str(caught.value)
    assert "2 of its 6 keys" in said and "none: No such file" in said
    assert "none: the scale must be a finite number, got inf" in said
