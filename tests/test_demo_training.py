"""The recipe of the demonstration model: every run is there, in an order in which each finds what it starts from."""

from pathlib import Path

import pytest

from qil_jax.training.config_file import load_experiment
from qil_jax.training.experiment import Inputs
from qil_jax.training.stages.kinds import Stage
from tools import demo_training

pytestmark = pytest.mark.full

EXPERIMENTS = {run.name: load_experiment(run.config) for run in demo_training.RUNS}


def test_every_config_is_a_run():
    shared = {"common", "diffusion"}
    assert {file.stem for file in demo_training.CONFIGS.glob("*.py")} == set(EXPERIMENTS) | shared
    assert [experiment.stage for experiment in EXPERIMENTS.values()] == [*Stage, *[Stage.IMAGE_TO_LAYERS] * 3]


def test_each_run_starts_from_one_before_it_and_from_data_that_is_made():
    there = {"base"}
    for name, experiment in EXPERIMENTS.items():
        starts = {experiment.start.checkpoint, experiment.start.vae} - {None}
        for start in starts:
            assert Path(start).relative_to(demo_training.WRITTEN_FOR).parts[0] in there, name
        kind = "latents" if experiment.data.inputs is Inputs.LATENTS else "scenes"
        (source,) = experiment.data.sources
        assert Path(source).name.removeprefix(f"{kind}_") in demo_training.datasets()
        there.add(name)


def test_shares():
    run = demo_training.Run(name="stage3_image_to_layers_long", shipped=1000)
    assert [run.steps(12_000, share) for share in (1, 0.1, 0.001)] == [12_000, 100, demo_training.LEAST_STEPS]
    assert demo_training.Run(name="rgba_vae").steps(6000, 0.1) == 600


def test_paths_of_the_configs_move_along(tmp_path):
    recipe = demo_training.Recipe(tmp_path, 0.1)
    start = EXPERIMENTS["stage2_text_to_layers"].start
    assert recipe.moved(start.checkpoint) == str(tmp_path / "stage1_text_to_rgba" / "checkpoint")


@pytest.mark.parametrize("share", ["0", "1.5", "-1"])
def test_shares_that_are_none_are_refused(share, capsys):
    with pytest.raises(SystemExit):
        demo_training.main(["--share", share])
    assert "--share must be above 0 and at most 1" in capsys.readouterr().err
