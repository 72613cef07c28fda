"""Experiments: what the shipped configs say, dotted overrides, and what is refused."""

import ast
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import ROOT, config_of

from qil_jax.cli.train_arguments import parse_arguments
from qil_jax.models.attention import AttentionKind
from qil_jax.programs import called
from qil_jax.training.bounds import BOUNDS, numbers
from qil_jax.training.config_file import load_experiment
from qil_jax.training.describe import attributes_of, settings
from qil_jax.training.experiment import (
    CheckpointConfig,
    DataConfig,
    Experiment,
    ExperimentError,
    Inputs,
    Made,
    Start,
    ValidationConfig,
)
from qil_jax.training.lora import LoRAConfig
from qil_jax.training.optimiser import OptimiserConfig
from qil_jax.training.settings import from_json, to_json
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.vae_loss import VAELoss

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
    ("override", "says"),
    [
        ("optimizer.learning_rate=1", "has no 'optimizer', it has stage,"),
        ("optimiser.lr=1", "OptimiserConfig has no 'lr'"),
        (
            "optimiser.learning_rate=fast",
            "learning_rate': 'fast' is not valid: input should be a valid number",
        ),
        ("optimiser.learning_rate=-1", "must be positive"),
        ("steps=1.5", "'steps': '1.5' is not valid: input should be a valid integer"),
        ("steps=0", "must be at least 1"),
        ("steps", "name=value"),
        ("precision=fp8", "'precision': 'fp8' is not valid: input should be 'float32' or 'bfloat16'"),
        ("steps.more=1", "'steps' has no parts"),
        ("data.loader=1", "given for a whole LoaderConfig"),
        ("data.loader=none", "given for a whole LoaderConfig"),
        ("lora=8", "'8' is given for a whole LoRAConfig: set a part, lora.rank, lora.alpha,"),
        ("lora.rnk=8", "LoRAConfig has no 'rnk', it has rank, .* mean rank"),
        ("lora.rank=0", "'lora.rank': LoRAConfig: rank 0 must be at least 1"),
        ("lora.alpha=inf", "'lora.alpha': LoRAConfig: .*alpha inf above 0 and finite"),
        ("lora.dropout=1", "'lora.dropout': LoRAConfig: dropout 1.0 must be at least 0 and below 1"),
        ("lora.targets=*", "'lora.targets': LoRAConfig: targets '.' is no regular expression: nothing to repeat"),
        ("data.sources=here", "is not a JSON list"),
        ("optimiser.accumulate=3", "is no multiple of optimiser.accumulate 3"),
    ],
)
def test_wrong_overrides_say_what_and_the_fix(override, says):
    with pytest.raises(ExperimentError, match=says.replace("[", r"\[")):
        load_experiment(config_of(Stage.IMAGE_TO_LAYERS), [override])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("x = 1", "defines no function config"),
        ("def config(): return 3", "returns int, not an Experiment"),
        ("{0}\ndef config(): return dataclasses.replace(made(), stepz=3)", "stepz"),
        ("{0}\ndef config(): return dataclasses.replace(made(), log_every='2')", "log_every"),
        ("{0}\ndef config(): return dataclasses.replace(made(), trainable=3)", "trainable"),
        ("{0}\ndef config(): return dataclasses.replace(made(), attention='xla')", "attention"),
    ],
)
def test_wrong_config_files_are_refused(tmp_path, body, says):
    file = tmp_path / "mine.py"
    file.write_text(body.format("import dataclasses\nfrom configs.demo.stage3_image_to_layers import config as made"))
    with pytest.raises(ExperimentError, match=says):
        load_experiment(file)


def test_overrides_are_judged_together():
    """Either of these alone would be refused."""
    experiment = load_experiment(config_of(Stage.IMAGE_TO_LAYERS), ["optimiser.accumulate=3", "data.loader.rows=9"])
    assert (experiment.data.loader.rows, experiment.optimiser.accumulate) == (9, 3)


ELSEWHERE = {"loss.pixel", "loss.colour", "loss.perceptual", "loss.kl", "loss.reference_kl"}
"""Numbers of the other loss."""
LISTS = {
    "data.loader.tasks.mix": '[["image-to-layers", {}]]',
    "data.loader.buckets.resolutions": "[{}]",
    "data.loader.buckets.aspect_ratios": "[[{}, 1]]",
}


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "9" * 24, "-1e300"])
@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_every_number_has_bounds(name, value):
    stage = Stage.RGBA_VAE if name in ELSEWHERE else Stage.IMAGE_TO_LAYERS
    with pytest.raises(ExperimentError, match=name.split(".")[-1]):
        load_experiment(config_of(stage), [f"{name}={LISTS.get(name, '{}').format(value)}"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimiser.learning_rate=nan", "optimiser.learning_rate is nan and must be from 0 to 1000"),
        ("optimiser.learning_rate=inf", "optimiser.learning_rate is inf and must be from 0 to 1000"),
        ("validation.every=-1", "validation.every is -1 and must be at least 0"),
        ("checkpoints.every=-1", "checkpoints.every is -1 and must be at least 1"),
        ("optimiser.beta1=1", "optimiser.beta1 is 1 and must be from 0 to 0.9999999999999999"),
        ("steps=1000000000000", "steps is 1000000000000 and must be from 1 to 2147483647"),
    ],
)
def test_numbers_outside_their_bounds_are_named_with_them(override, says):
    with pytest.raises(ExperimentError, match=re.escape(says)):
        load_experiment(config_of(Stage.IMAGE_TO_LAYERS), [override])


def test_no_number_lacks_bounds():
    """Nor is there a bound of nothing."""
    names = {name for file in CONFIGS for name, _ in numbers(load_experiment(file))}
    lora = load_experiment(config_of(Stage.IMAGE_TO_LAYERS), ["lora.rank=2", "loss.shift=2", "data.loader.epochs=1"])
    muon = load_experiment(
        config_of(Stage.IMAGE_TO_LAYERS), ["optimiser.kind=muon", "optimiser.adamw_learning_rate=1e-4"]
    )
    assert names | {name for experiment in (lora, muon) for name, _ in numbers(experiment)} == {*BOUNDS}


def test_a_stage_trains_its_own_tasks_only():
    layers = load_experiment(config_of(Stage.IMAGE_TO_LAYERS))
    with pytest.raises(ExperimentError, match="cannot train image-to-layers: its tasks are"):
        dataclasses.replace(layers, stage=Stage.TEXT_TO_RGBA)
    with pytest.raises(ExperimentError, match="needs a VAELoss"):
        dataclasses.replace(layers, stage=Stage.RGBA_VAE)


def test_an_optional_config_is_set_by_its_parts_and_taken_away_by_none():
    def lora(*overrides: str) -> LoRAConfig | None:
        return load_experiment(config_of(Stage.IMAGE_TO_LAYERS), overrides).lora

    assert lora() is None
    assert lora("lora.rank=16", "lora.alpha=8") == LoRAConfig(rank=16, alpha=8.0)
    assert lora("lora.rank=16", "lora=none") is None
    assert lora("lora=none", "lora.dropout=0.1") == LoRAConfig(dropout=0.1)
    experiment = load_experiment(config_of(Stage.IMAGE_TO_LAYERS), ["lora.targets=image/q"])
    assert from_json(json.dumps(to_json(experiment))) == experiment
    assert "lora.rank" in {setting.name for setting in settings(experiment, to_json(experiment)) if setting.is_set}


def test_missing_file():
    with pytest.raises(ExperimentError, match="no such file"):
        load_experiment(Path("nowhere.py"))


def test_overrides_read_truth():
    plain = load_experiment(config_of(Stage.IMAGE_TO_LAYERS), ["unroll=false"])
    assert plain.unroll is False
    assert load_experiment(config_of(Stage.IMAGE_TO_LAYERS), ["unroll=True"]).unroll is True
    with pytest.raises(ExperimentError, match="'unroll': 'yes' is not true or false"):
        load_experiment(config_of(Stage.IMAGE_TO_LAYERS), ["unroll=yes"])


def test_all_wrong_overrides_are_reported_at_once():
    wrong = {
        "loss.caption_dropout=2": "'loss.caption_dropout': FlowLoss: caption_dropout 2.0 must lie between 0 and 1",
        "steps=many": "'steps': 'many' is not valid: input should be a valid integer",
        "optimiser.learning_rat=1": "'optimiser.learning_rat': .* \\(did you mean learning_rate\\?\\)",
        "data.loader.rows=0": "'data.loader.rows': LoaderConfig: rows is 0",
        "loss.foo=1": "'loss.foo': FlowLoss has no 'foo', it has",
        "seed": "'seed': write an override as name=value",
        "start.vae.more=1": "'start.vae.more': 'vae' has no parts",
        "data.sources=[6": "'data.sources': '\\[6' is not a JSON list",
    }
    with pytest.raises(ExperimentError) as caught:
        load_experiment(config_of(Stage.IMAGE_TO_LAYERS), [*wrong, "log_every=3"])
    lines = str(caught.value).splitlines()
    assert len(lines) == len(wrong)
    for says in wrong.values():
        assert [line for line in lines if re.fullmatch(rf"\s*{says}.*", line)], says


def test_numbers_and_truth_are_read_as_python_writes_them():
    given = ["optimiser.beta2=.9", "steps=1_000", "unroll=TRUE", "start.vae=None", "mesh.data=2", "trainable=true"]
    experiment = load_experiment(config_of(Stage.IMAGE_TO_LAYERS), given)
    assert (experiment.optimiser.beta2, experiment.steps, experiment.unroll) == (0.9, 1000, True)
    assert (experiment.start.vae, experiment.mesh.data, experiment.trainable) == (None, 2, "true")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_experiments_are_read_back_from_json(file):
    experiment = load_experiment(file)
    assert from_json(json.dumps(to_json(experiment))) == experiment


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON as it should be"),
        ("[]", "it is not valid: input should be an object"),
        ("{}", "stage is not valid: field required; start is not"),
    ],
)
def test_json_of_something_else_is_refused(text, says):
    with pytest.raises(ExperimentError, match=says):
        from_json(text)


def test_help_of_a_config_lists_every_setting(capsys):
    file = config_of(Stage.IMAGE_TO_LAYERS)
    with pytest.raises(SystemExit) as ended:
        parse_arguments([str(file), "--set", "optimiser.learning_rate=0.5", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "--set NAME=VALUE" in said
    for part in (
        "\n  optimiser.learning_rate (float) = 0.5\n      peak learning rate, above 0; with muon that of",
        "\n  start.vae (text or none) = build/demo_training/rgba_vae/checkpoint\n      folder of the RGBA-VAE",
        "\n  precision (float32 or bfloat16) = float32\n",
        '\n  data.sources (list of text) = ["build/demo_training/latents_grouped"]\n',
        "\n  data.loader.rows (int) = 16\n",
        "\n  lora (LoRAConfig or none) = none\n",
        "\n  lora.rank (int) = 32 if a part of lora is set\n      number of columns of factor a",
    ):
        assert part in said
    experiment = load_experiment(file)
    every = list(settings(experiment, to_json(experiment)))
    listed = {setting.name: setting for setting in every if setting.is_set}

    def leaves(tree: dict[str, Any], above: str = "") -> Iterator[str]:
        for name, part in tree.items():
            yield from leaves(part, f"{above}{name}.") if isinstance(part, dict) else (f"{above}{name}",)

    assert list(listed) == list(leaves(to_json(experiment)))
    fields = [f"lora.{field.name}" for field in dataclasses.fields(LoRAConfig)]
    assert [setting.name for setting in every if not setting.is_set] == fields
    written = [f"{setting.name}={setting.value}" for setting in listed.values()]
    assert load_experiment(file, written) == experiment, "--set does not take what --help shows"


def test_help_of_a_config_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments([str(tmp_path / "mine.py"), "--help"])
    assert ended.value.code == 2 and "mine.py: no such file" in capsys.readouterr().err


def test_plain_help_needs_no_heavy_imports():
    """It is asked of a process of its own, where nothing is imported yet."""
    script = "import sys, train\ntry: train.main(['--help'])\nexcept SystemExit: print([*sys.modules])"
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"usage: {called('train')} " in ended.stdout
    assert not {"jax", "numpy", "pydantic", "qil_jax.training.describe"} & {
        *ast.literal_eval(ended.stdout.splitlines()[-1])
    }


def test_every_field_of_trainings_configs_is_documented():
    nested = (Start, Made, DataConfig, CheckpointConfig, ValidationConfig, OptimiserConfig, VAELoss, LoRAConfig)
    for kind in (Experiment, *nested):
        documented = attributes_of(kind)
        assert list(documented) == [field.name for field in dataclasses.fields(kind)]
        assert all(documented.values()), kind
