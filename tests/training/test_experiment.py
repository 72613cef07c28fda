"""Experiments: what the shipped configs say, dotted overrides, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
from runs import ROOT, config_of

from qil_jax.models.attention import AttentionKind
from qil_jax.training.experiment import ExperimentError, load_experiment, to_json
from qil_jax.training.stages import Inputs, Stage

CONFIGS = sorted(file for file in (ROOT / "configs").rglob("*.py") if "def config()" in file.read_text())


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_shipped_config_is_an_experiment(file):
    experiment = load_experiment(file)
    assert experiment.stage in file.stem or file.stem.startswith("finetune")
    json.dumps(to_json(experiment))


def test_overrides_reach_any_depth_and_type():
    experiment = load_experiment(
        config_of(Stage.IMAGE_TO_LAYERS),
        [
            "optimiser.learning_rate=2e-5",
            "data.loader.buckets.resolutions=[32,64]",
            "attention=xla",
            "data.inputs=pictures",
            "start.vae=none",
            "loss.shift=none",
            "steps=7",
        ],
    )
    assert experiment.optimiser.learning_rate == 2e-5
    assert experiment.data.loader.buckets.resolutions == (32, 64)
    assert experiment.attention is AttentionKind.XLA
    assert experiment.data.inputs is Inputs.PICTURES
    assert (experiment.start.vae, getattr(experiment.loss, "shift", 0), experiment.steps) == (None, None, 7)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optimizer.learning_rate=1", "has no 'optimizer', it has stage,"),
        ("optimiser.lr=1", "OptimiserConfig has no 'lr'"),
        ("optimiser.learning_rate=fast", "'fast' is not a number"),
        ("optimiser.learning_rate=-1", "must be positive"),
        ("steps=1.5", "'1.5' is not a whole number"),
        ("steps=0", "must be at least 1"),
        ("steps", "name=value"),
        ("precision=fp8", "'fp8' is not one of float32 or bfloat16"),
        ("steps.more=1", "'steps' has no parts"),
        ("data.loader=1", "given for a whole LoaderConfig"),
        ("data.sources=here", "is not a JSON list"),
        ("optimiser.accumulate=3", "is no multiple of optimiser.accumulate 3"),
    ],
)
def test_wrong_overrides_say_what_and_the_fix(override, metrics):
    with pytest.raises(ExperimentError, match=metrics.replace("[", r"\[")):
        load_experiment(config_of(Stage.IMAGE_TO_LAYERS), [override])


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("x = 1", "defines no function config"),
        ("def config(): return 3", "returns int, not an Experiment"),
        ("{0}\ndef config(): return dataclasses.replace(made(), stepz=3)", "stepz"),
        ("{0}\ndef config(): return dataclasses.replace(made(), log_every='2')", "log_every"),
        ("{0}\ndef config(): return dataclasses.replace(made(), trainable=3)", "trainable"),
        ("{0}\ndef config(): return dataclasses.replace(made(), attention='xla')", "attention"),
    ],
)
def test_wrong_config_files_are_refused(tmp_path, body, metrics):
    file = tmp_path / "mine.py"
    file.write_text(body.format("import dataclasses\nfrom configs.demo.stage3_image_to_layers import config as made"))
    with pytest.raises(ExperimentError, match=metrics):
        load_experiment(file)


def test_overrides_are_judged_together():
    """Either of these alone would be refused."""
    experiment = load_experiment(config_of(Stage.IMAGE_TO_LAYERS), ["optimiser.accumulate=3", "data.loader.rows=9"])
    assert (experiment.data.loader.rows, experiment.optimiser.accumulate) == (9, 3)


def test_a_stage_trains_its_own_tasks_only():
    layers = load_experiment(config_of(Stage.IMAGE_TO_LAYERS))
    with pytest.raises(ExperimentError, match="cannot train image-to-layers: its tasks are"):
        dataclasses.replace(layers, stage=Stage.TEXT_TO_RGBA)
    with pytest.raises(ExperimentError, match="needs a VAELoss"):
        dataclasses.replace(layers, stage=Stage.RGBA_VAE)


def test_missing_file():
    with pytest.raises(ExperimentError, match="no such file"):
        load_experiment(Path("nowhere.py"))


def test_overrides_read_truth():
    plain = load_experiment(config_of(Stage.IMAGE_TO_LAYERS), ["unroll=false"])
    assert plain.unroll is False
    assert load_experiment(config_of(Stage.IMAGE_TO_LAYERS), ["unroll=True"]).unroll is True
    with pytest.raises(ExperimentError, match="'unroll': 'yes' is not true or false"):
        load_experiment(config_of(Stage.IMAGE_TO_LAYERS), ["unroll=yes"])
