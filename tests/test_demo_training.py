"""The recipe of the demonstration model: every run is there, in an order in which each finds what it starts from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from qil_jax import programs
from qil_jax.scenes.assets import LIST, Kind, Stored, write_list
from qil_jax.shipped import shipped_checkpoint
from qil_jax.training.config_file import load_experiment
from qil_jax.training.experiment import Inputs
from qil_jax.training.optimiser import OptimiserKind
from qil_jax.training.stages.kinds import Stage
from tools import demo_training

pytestmark = pytest.mark.full

EXPERIMENTS = {run.name: load_experiment(run.config) for run in demo_training.RUNS}


def test_every_config_is_a_run():
    shared = {"common", "diffusion"}
    assert {file.stem for file in demo_training.CONFIGS.glob("*.py")} == set(EXPERIMENTS) | shared
    stages = [*Stage, *[Stage.IMAGE_TO_LAYERS] * 3, Stage.RGBA_VAE, *[Stage.IMAGE_TO_LAYERS] * 2]
    assert [experiment.stage for experiment in EXPERIMENTS.values()] == stages


def test_each_run_starts_from_one_before_it_and_from_data_that_is_made():
    there = {"base"}
    for name, experiment in EXPERIMENTS.items():
        starts = {experiment.start.checkpoint, experiment.start.vae} - {None}
        for start in starts:
            assert Path(start).relative_to(demo_training.WRITTEN_FOR).parts[0] in there, name
        kind = "latents" if experiment.data.inputs is Inputs.LATENTS else "scenes"
        (source,) = experiment.data.sources
        assert Path(source).name.removeprefix(f"{kind}_") in demo_training.Recipe(Path(), 1).datasets()
        there.add(name)


def test_shares():
    run = demo_training.Run(name="stage3_image_to_layers_long", shipped=1000)
    assert [run.steps(12_000, share) for share in (1, 0.1, 0.001)] == [12_000, 100, demo_training.LEAST_STEPS]
    assert demo_training.Run(name="rgba_vae").steps(6000, 0.1) == 600
    appended = demo_training.Run(name="stage3_image_to_layers_design", appended=True)
    assert [appended.steps(4000, share) for share in (1, 0.1, 0.001)] == [4000, 40, demo_training.LEAST_STEPS]


def test_paths_of_the_configs_move_along(tmp_path):
    recipe = demo_training.Recipe(tmp_path, 0.1)
    start = EXPERIMENTS["stage2_text_to_layers"].start
    assert recipe.moved(start.checkpoint) == str(tmp_path / "stage1_text_to_rgba" / "checkpoint")


def test_runs_from_what_ships(tmp_path):
    """The runs at 128 pixels, their data, and the shipped checkpoint in place of what made it."""
    recipe = demo_training.Recipe(tmp_path, 1, from_shipped=True)
    assert [run.name for run in recipe.runs] == list(EXPERIMENTS)[-3:]
    assert list(recipe.datasets()) == ["design", "photo"]
    starts = [EXPERIMENTS[run.name].start for run in recipe.runs]
    shipped, vae = str(shipped_checkpoint()), str(tmp_path / "rgba_vae_128" / "checkpoint")
    design = str(tmp_path / "stage3_image_to_layers_design" / "checkpoint")
    assert [recipe.moved(start.checkpoint) for start in starts] == [shipped, shipped, design]
    assert [start.vae and recipe.moved(start.vae) for start in starts] == [None, vae, vae]
    whole = demo_training.Recipe(tmp_path, 1)
    assert whole.moved(starts[0].checkpoint) == str(tmp_path / "stage3_image_to_layers_varied" / "checkpoint")


@pytest.mark.parametrize("name", list(EXPERIMENTS)[-2:])
def test_stage_3_at_128_pixels(name):
    experiment = EXPERIMENTS[name]
    loader, optimiser = experiment.data.loader, experiment.optimiser
    assert loader.buckets.resolutions == (128,) and (loader.rows, loader.buckets.row_tokens) == (16, 768)
    assert optimiser.kind is OptimiserKind.MUON
    assert (optimiser.accumulate, optimiser.warmup_steps, optimiser.ema_decay) == (4, 20, 0.995)
    assert (experiment.flow_loss.shift, experiment.flow_loss.caption_dropout) == (3.0, 0.5)


def write_assets(folder: Path) -> None:
    """Pictures enough for every split."""
    rng, stored = np.random.default_rng(0), []
    folder.mkdir(parents=True)
    for i in range(60):
        kind = Kind.BACKGROUND if i % 3 == 0 else Kind.OBJECT
        pixels = np.full((40, 50, 4), (*rng.integers(0, 256, 3), 255), np.uint8)
        pixels[:4, :, 3] = 255 if kind is Kind.BACKGROUND else 0
        Image.fromarray(pixels).save(folder / f"{i}.png")
        stored.append(Stored(file=f"{i}.png", name=f"a thing {i}", kind=kind, licence="MIT"))
    write_list(folder / LIST, stored)


@pytest.mark.slow
def test_the_runs_from_what_ships_train_and_go_on(tmp_path, monkeypatch):
    """A hundredth of each run, terminated after its first line and said again. The encoder keeps its bits."""
    calls: list[str] = []
    finish = demo_training.call

    def called(program: str, *words: object) -> None:
        calls.append(program)
        if program == "train":
            call = [sys.executable, *demo_training.front(program), *map(str, words)]
            env = {**os.environ, **demo_training.ENVIRONMENT}
            with subprocess.Popen(call, env=env, stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                child.stdout.readline()
                child.terminate()
                assert f"to go on: {programs.called('train')} " in child.stdout.read()
            assert child.returncode == 0 and not (tmp_path / Path(str(words[0])).stem / "checkpoint").exists()
        finish(program, *words)

    monkeypatch.setattr(demo_training, "call", called)
    monkeypatch.setattr(demo_training, "LEAST_SCENES", 340)  # 17 for validation: a batch has 16 rows
    monkeypatch.setattr(demo_training, "LEAST_STEPS", 4)
    write_assets(tmp_path / "assets" / "things")
    for _ in range(2):
        recipe = demo_training.Recipe(tmp_path, 0.002, from_shipped=True)
        recipe.scenes(tmp_path / "assets")
    losses = [recipe.train(run) for run in recipe.runs]
    assert [len(lines) for lines in losses] == [4, 4, 4] and np.isfinite(losses).all()
    assert calls == ["make-scenes"] * 2 + ["train"] + ["cache-latents", "train"] * 2

    shipped, trained = shipped_checkpoint() / "vae", tmp_path / recipe.runs[-1].name / "checkpoint" / "vae"
    before, after = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (shipped, trained))
    same = {name for name in before if np.array_equal(before[name].astype(np.float32), after[name])}
    assert {name for name in before if name.startswith(("encoder.", "quant_conv."))} <= same
    assert any(name.startswith("decoder.") for name in before.keys() - same)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (shipped, trained)]
    assert configs[0]["latents_mean"] == configs[1]["latents_mean"]


@pytest.mark.parametrize("share", ["0", "1.5", "-1"])
def test_shares_that_are_none_are_refused(share, capsys):
    with pytest.raises(SystemExit):
        demo_training.main(["--share", share])
    assert "--share must be above 0 and at most 1" in capsys.readouterr().err
