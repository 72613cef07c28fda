"""How many records it takes to have enough in a split."""

from pathlib import Path

import pytest

from qil_jax.records.sources import SplitError
from qil_jax.records.splits import SPLITS, records_for
from qil_jax.scenes.scene import SIMPLE
from qil_jax.scenes.scene_files import Recipe, _contents
from qil_jax.training import data
from qil_jax.training.config_file import load_experiment
from qil_jax.training.experiment import ExperimentError

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "small" / "finetune_lora.py"


@pytest.mark.parametrize("split", SPLITS)
def test_so_many_scenes_have_enough_in_a_split(split):
    for count in range(1, 100):
        scenes = range(records_for(split, count))
        splits = _contents(scenes, Recipe(config=SIMPLE, assets=None)).splits
        assert count <= len(splits[split]) <= count + 1


def test_an_empty_split_is_refused_with_the_number_of_records_that_fill_it(monkeypatch):
    def none(paths, split):
        raise SplitError(f"{paths[0]}: no split '{split}': it has train")

    monkeypatch.setattr(data, "open_sources", none)
    experiment = load_experiment(CONFIG)
    says = "^data/scenes: no split 'validation': it has train; a dataset of 160 records has 8 for validation$"
    with pytest.raises(ExperimentError, match=says):
        data.open_data(experiment, "validation", experiment.data.loader)
