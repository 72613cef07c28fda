"""The folder of a run: what may change when it is continued, and what is refused."""

import json

import pytest
from runs import config_of

from qil_jax.training.config_file import load_experiment
from qil_jax.training.experiment import Experiment, ExperimentError
from qil_jax.training.run_folder import EXPERIMENT, check_folder, claim
from qil_jax.training.stages.kinds import Stage


def experiment(*overrides: str) -> Experiment:
    return load_experiment(config_of(Stage.IMAGE_TO_LAYERS), overrides)


@pytest.mark.parametrize(
    "override", ["data.workers.threads=3", "log_every=1", "checkpoints.every=7", "mesh.data=2", "made_by=[]"]
)
def test_what_does_not_change_the_result_may_change(tmp_path, override):
    claim(tmp_path, experiment())
    check_folder(tmp_path, experiment(override))


@pytest.mark.parametrize("override", ["steps=7", "seed=1", "data.text_tokens=7", "loss.shift=none", "unroll=false"])
def test_all_else_must_stay(tmp_path, override):
    claim(tmp_path, experiment())
    name = override.split("=")[0].split(".")[0]
    with pytest.raises(ExperimentError, match=rf"run with other settings \({name} differ from .*experiment.json\)"):
        check_folder(tmp_path, experiment(override))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"x"'])
def test_an_experiment_that_cannot_be_read(tmp_path, text):
    (tmp_path / EXPERIMENT).write_text(text)
    with pytest.raises(
        ExperimentError, match=r"experiment.json cannot be read \(.*is not (valid|JSON).*give another --out"
    ):
        check_folder(tmp_path, experiment())


def test_a_field_that_is_new_since_has_its_default(tmp_path):
    """A run of an older version goes on if the new field is left alone."""
    claim(tmp_path, experiment())
    file = tmp_path / EXPERIMENT
    older = json.loads(file.read_text())
    del older["give_up"], older["trainable"], older["lora"]
    file.write_text(json.dumps(older))
    check_folder(tmp_path, experiment())
    with pytest.raises(ExperimentError, match=r"\(trainable differ"):
        check_folder(tmp_path, experiment("trainable=image_out"))
    with pytest.raises(ExperimentError, match=r"\(lora differ"):
        check_folder(tmp_path, experiment("lora.rank=4"))
