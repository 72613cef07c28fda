"""`qil train --check`: what it reports, and that it leaves nothing behind."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from counting import Counts
from runs import ROOT, QuickRuns, World, command, config_of, environment, finish

from qil_jax.cli import train
from qil_jax.programs import called
from qil_jax.training import check, setup
from qil_jax.training.check import folder_lines, size_text
from qil_jax.training.config_file import load_experiment
from qil_jax.training.stages.kinds import Stage


def entries(text: str) -> dict[str, str]:
    """The lines of the report by what stands before the colon."""
    return {line.split(": ", 1)[0]: line.split(": ", 1)[1] for line in text.splitlines() if ": " in line}


def size(text: str) -> float:
    """Bytes of the first size in a text; the inverse of `size_text`."""
    found = re.search(r"([\d.]+) (GB|MB|kB|bytes)", text)
    assert found, text
    return float(found[1]) * {"GB": 1e9, "MB": 1e6, "kB": 1e3, "bytes": 1}[found[2]]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2_500_000, "2.5 MB"), (16 * 10**9, "16 GB")],
)
def test_sizes_are_said_in_words(count, text):
    assert size_text(count) == text
    assert size(text) == count


def files_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.full
def test_eight_devices(world: World, tmp_path):
    stage, run = Stage.IMAGE_TO_LAYERS, tmp_path / "run"
    changes = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "data.loader.rows": 4}
    changes |= {"trainable": "backbone/blocks", "validation.every": 2, "validation.split": "train"}
    settings = world.settings(stage, changes)
    said = entries(finish(command(stage, run, settings, "--check"), environment(world.folder, devices=8)))
    assert not run.exists()
    assert said["devices"] == "8 of kind cpu in 1 processes; mesh: data=2 fsdp=2 tensor=2"
    trained, frozen = said["trained"], said["frozen in the same network"]
    count = int(trained.split()[0].replace(",", ""))
    assert count > 10_000 and int(frozen.split()[0].replace(",", "")) > 1000
    whole = 4 * count
    assert whole / 8 < size(trained.split(", ")[-1]) < whole, "parameters are sharded over devices"
    parts = [size(part) for part in said["state"].split(": ", 1)[1].split(", ")]
    assert parts[0] == parts[1] and parts[2] == pytest.approx(2 * parts[0], rel=0.01)
    assert size(said["state"]) == pytest.approx(sum(parts), rel=0.01)
    assert size(said["checkpoints"].split("step")[-1]) == pytest.approx(4 * whole, rel=0.01)
    assert f"first of a run is {run}/checkpoints/2, " in said["checkpoints"] and "are free" in said["checkpoints"]
    assert re.match(
        r"4 rows, \d+ samples, \d+ image and \d+ text tokens; padded: 4 rows of 48 image", said["first batch"]
    )
    assert float(said["a step"].split()[0]) > 0
    memory = said["memory of the step, a device"]
    state, held = size(said["state"]), {part.rsplit(" ", 2)[0]: size(part) for part in memory.split(", ")}
    assert held["arguments"] > state and held["temporaries"] > 0
    assert held["of which aliased"] == pytest.approx(state, rel=0.01), "the step donates the state"
    assert size(said["memory while training"]) > held["arguments"] + held["temporaries"]
    assert "records, " in said["training data"] and "shapes of batches" in said["training data"]
    assert said["validation data"].endswith("records of the split train")
    assert said["the run"] == f"{run} holds no checkpoint: it would begin with step 1 of 6"


@pytest.mark.full
def test_the_vae(world: World, tmp_path):
    stage, run = Stage.RGBA_VAE, tmp_path / "run"
    settings = world.settings(stage, {"loss.perceptual": 0.5, "steps": 2})
    said = entries(finish(command(stage, run, settings, "--check"), environment(world.folder)))
    assert "pictures; padded: " in said["first batch"] and "frozen in the same network" in said
    assert said["missing"].startswith("the perceptual term is off")
    assert said["validation data"] == "none, validation.every is 0" and not run.exists()


@pytest.mark.full
def test_the_initial_checkpoint_is_read_once(world: World, one_device, tmp_path, monkeypatch, capsys):
    """All but what run-time type checks, which are on in this process, refuse: lowering, and a number for an array."""
    compiled = SimpleNamespace(memory_analysis=lambda: None)
    step = SimpleNamespace(lower=lambda *_: SimpleNamespace(compile=lambda: compiled))
    monkeypatch.setattr(setup.TrainingRun, "step", lambda *_: step)
    monkeypatch.setattr(check, "_batch", lambda *_: [])
    counts = Counts(world.base, monkeypatch)
    call = command(Stage.IMAGE_TO_LAYERS, tmp_path / "run", world.settings(Stage.IMAGE_TO_LAYERS, {}), "--check")
    assert train.main(call[2:]) == 0 and "compiled: " in capsys.readouterr().out
    assert len(counts.of_weights()) == 6 and {*counts.of_weights().values()} == {1}
    assert {name: count for name, count in counts.made.items() if count > 1} == {}
    assert counts.made.keys() >= {"MMDiTConfig", "VAEConfig", "Qwen2_5VLConfig", "VLDMMDiT", "RGBAVAE", "TextEncoder"}


@pytest.mark.full
def test_a_run_that_is_there_is_said_and_left_alone(quick: QuickRuns, tmp_path):
    run = tmp_path / "run"
    assert quick.main(run, {"steps": 2}) == 0
    before = files_below(run)
    call = [sys.executable, str(ROOT / "train.py"), *quick.argv(run, {"steps": 2}, "--check")]
    said = entries(finish(call, environment(quick.world.folder)))
    assert said["the run"] == f"{run} holds this run: it would go on from step 2 of 2"
    assert files_below(run) == before


def test_a_disk_without_room_is_said(tmp_path):
    experiment = load_experiment(config_of(Stage.RGBA_VAE), ["steps=5", "checkpoints.every=7"])
    first, fine = folder_lines(experiment, tmp_path, needed=1000)
    assert first.endswith("it would begin with step 1 of 5")
    assert f"the first of a run is {tmp_path}/checkpoints/5, 1 kB; " in fine
    *_, full = folder_lines(experiment, tmp_path, needed=10**18)
    assert full.startswith(f"a checkpoint does not fit on the disk of {tmp_path}: make room")


@pytest.mark.full
def test_the_folder_of_another_run_is_refused(quick: QuickRuns, tmp_path, capsys):
    (tmp_path / "letter.txt").write_text("dear")
    assert quick.main(tmp_path, {}, "--check") == 2
    assert f"holds something that is no run of {called('train')}" in capsys.readouterr().err


@pytest.mark.full
def test_what_does_not_fit_on_the_devices_is_refused(quick: QuickRuns, tmp_path, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes\nstack")

    monkeypatch.setattr(setup, "fresh_state", full)
    assert quick.main(tmp_path / "run", {}, "--check") == 2
    said = capsys.readouterr().err
    assert "does not fit into the memory of the devices (RESOURCE_EXHAUSTED: Out of memory" in said
    assert "mesh.fsdp" in said and "stack" not in said


@pytest.mark.full
def test_what_train_refuses_is_refused(world: World, tmp_path):
    stage = Stage.IMAGE_TO_LAYERS
    call = command(stage, tmp_path / "run", world.settings(stage, {"mesh.data": 3}), "--check")
    ended = subprocess.run(call, env=environment(world.folder), capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stderr.startswith("error: ") and not (tmp_path / "run").exists()
