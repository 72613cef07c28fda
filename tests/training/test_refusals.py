"""What `qil train` cannot train it refuses before it computes.

That is exit status 2, what and where and the fix on stderr, no traceback, and nothing left in the run's folder that
would stand in the way of the corrected command.

Most refusals are asked of `qil train` in this process, which saves the start of a process; some are real calls.
"""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from runs import World, command, environment
from waiting import HANGS

from qil_jax.cli import train
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.models.quantised import Quantisation
from qil_jax.programs import called
from qil_jax.training import setup
from qil_jax.training.experiment import ExperimentError
from qil_jax.training.presets import preset_names
from qil_jax.training.stages.kinds import Stage
from qil_jax.weights.quantise import quantise_checkpoint
from qil_jax.weights.tables.entries import Component
from tools import make_demo_checkpoint

ONE, TWO, THREE = Stage.TEXT_TO_RGBA, Stage.TEXT_TO_LAYERS, Stage.IMAGE_TO_LAYERS
MESH = {"data.loader.rows": 8, "mesh.data": 8, "steps": 1}
"""The tests' eight devices, each with a row."""


class Given:
    """What the refused commands point to, beside the world."""

    def __init__(self, world: World, folder: Path):
        self.world, self.folder = world, folder
        for stage in (Stage.RGBA_VAE, ONE, THREE):
            self.trained(stage.value, json.dumps({"stage": stage.value, "step": 1}))
        self.trained("nameless", "{}")
        self.changed("rgb", {"input_channels": 3}, {"use_layer3d_rope": False})
        self.changed("other", {"latents_std": [2.0] * 16}, {})
        part = [Component.TRANSFORMER]
        quantise_checkpoint(world.base, folder / "quantised", Quantisation.INT8, components=part)
        (folder / "run" / "lora").mkdir(parents=True)
        (folder / "run" / "lora" / "pytorch_lora_weights.safetensors").touch()
        self.stacks("silent", caption="")
        self.stacks("titled", caption="a picture")
        assert world.cache(folder / "latents", {"data.loader.max_layers": 4}) == 0

    def trained(self, name: str, origin: str) -> None:
        """The world's checkpoint as one that a stage wrote."""
        shutil.copytree(self.world.base, self.folder / name)
        (self.folder / name / "training.json").write_text(origin)

    def changed(self, name: str, vae: dict[str, object], transformer: dict[str, object]) -> None:
        """A checkpoint with changes of two configs, as Qwen-Image's is without its own layers."""
        changes: dict[Component, dict[str, object]] = {Component.VAE: vae, Component.TRANSFORMER: transformer}
        configs = {part: {**config, **changes.get(part, {})} for part, config in make_demo_checkpoint.CONFIGS.items()}
        make_demo_checkpoint.write_checkpoint(self.folder / name, configs)

    def stacks(self, name: str, *, caption: str) -> None:
        """A folder of records of two noisy layers."""
        rng = np.random.default_rng(0)
        for i in range(8):
            layers = rng.integers(0, 256, (2, 32, 32, 4), np.uint8)
            LayeredImage(layers=layers, names=("", ""), caption=caption).save(self.folder / name / str(i))


@pytest.fixture(scope="module")
def given(world: World, tmp_path_factory) -> Given:
    return Given(world, tmp_path_factory.mktemp("given"))


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], run: Path) -> str:
    """What a refusal says on stderr."""
    before = sorted(run.rglob("*"))
    capsys.readouterr()
    assert train.trained(argv) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and "Traceback" not in out + err
    assert sorted(run.rglob("*")) == before, "something was left in the run's folder"
    return err


def arguments(stage: Stage, run: Path, settings: list[str]) -> list[str]:
    """Of `qil train`."""
    return command(stage, run, settings)[2:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A command that is refused: changes of the stage's settings, and what the refusal says, part by part.

    In both {given} stands for the folder of what is given, {base} and {scenes} for the world's.
    """

    stage: Stage = THREE
    changes: dict[str, object] = dataclasses.field(default_factory=dict)
    raw: tuple[str, ...] = ()
    says: tuple[str, ...]

    def filled(self, given: Given) -> tuple[list[str], list[str]]:
        """Settings, and what is said."""
        paths = {"given": given.folder, "base": given.world.base, "scenes": given.world.scenes}

        def fill(text: object) -> str:
            for name, path in paths.items():
                text = str(text).replace(f"{{{name}}}", str(path))
            return str(text)

        changes = {name: fill(value) for name, value in self.changes.items()}
        return [*given.world.settings(self.stage, MESH | changes), *map(fill, self.raw)], [fill(s) for s in self.says]


LATENTS = {"data.inputs": "latents", "data.sources": '["{given}/latents"]', "data.loader.max_layers": 4}
CASES = {
    "no checkpoint to start from": Case(changes={"start.checkpoint": "{given}/nothing"}, says=("{given}/nothing",)),
    "no VAE to start from": Case(stage=ONE, changes={"start.vae": "{given}/nothing"}, says=("{given}/nothing",)),
    "stage 3 from stage 1": Case(
        changes={"start.checkpoint": "{given}/stage1_text_to_rgba"},
        says=("was trained by stage1_text_to_rgba", "starts from stage2_text_to_layers", "set start.checkpoint"),
    ),
    "stage 1 from stage 3": Case(
        stage=ONE,
        changes={"start.checkpoint": "{given}/stage3_image_to_layers"},
        says=("was trained by stage3_image_to_layers", "starts from stage1_text_to_rgba", "set start.checkpoint"),
    ),
    "stage 2 from stage 3": Case(
        stage=TWO,
        changes={"start.checkpoint": "{given}/stage3_image_to_layers"},
        says=("was trained by stage3_image_to_layers", "starts from stage1_text_to_rgba", "set start.checkpoint"),
    ),
    "the RGBA-VAE from stage 1": Case(
        stage=Stage.RGBA_VAE,
        changes={"start.checkpoint": "{given}/stage1_text_to_rgba"},
        says=("was trained by stage1_text_to_rgba", "rgba_vae starts from rgba_vae", "set start.checkpoint"),
    ),
    "a checkpoint of an unknown stage": Case(
        changes={"start.checkpoint": "{given}/nameless"},
        says=("{given}/nameless/training.json: names no stage", "remove the file"),
    ),
    "a quantised transformer": Case(
        changes={"start.checkpoint": "{given}/quantised"},
        says=("{given}/quantised: its transformer is quantised to int8 and cannot be trained", "full precision"),
    ),
    "a VAE of three channels": Case(
        stage=ONE, changes={"start.vae": "{given}/rgb"}, says=("{given}/rgb: its VAE has 3 channels", "set start.vae")
    ),
    "records without captions": Case(
        stage=ONE,
        changes={"data.sources": '["{given}/silent"]'},
        says=("8 of 8 records have no caption", "{given}/silent/0 the first", "build the dataset with captions"),
    ),
    "no such records": Case(
        changes={"data.sources": '["{given}/nowhere"]'},
        says=("{given}/nowhere: no records: expected dataset_info.json",),
    ),
    "no sources at all": Case(changes={"data.sources": "[]"}, says=("data.sources is empty", "--set")),
    "fewer records than rows": Case(
        changes={"data.sources": '["{given}/titled"]', "data.loader.rows": 16},
        says=(
            "{given}/titled: the split train has 8 records, fewer than the 16 rows",
            "lower data.loader.rows, or add",
        ),
    ),
    "fewer records to validate with than rows": Case(
        changes={"validation.every": 1},
        says=(
            "{scenes}: the split validation, which validation.split names, has 3 records, fewer than the 8 rows",
            "lower data.loader.rows, or go without validation, validation.every=0; a dataset of 160 records has 8 for",
        ),
    ),
    "no such split to validate with": Case(
        changes={"validation.every": 1, "validation.split": "exam"}, says=("no split 'exam': it has",)
    ),
    "an override of nothing": Case(raw=("optimiser.speed=1",), says=("'optimiser.speed'", "has no 'speed', it has")),
    "an override of another type": Case(
        raw=("steps=many",), says=("'steps': 'many' is not valid: input should be a valid integer",)
    ),
    "a list of another type": Case(
        raw=("data.sources=[1]",), says=("'data.sources': '[1]' is not valid: input should be a valid string\n",)
    ),
    "overrides of whole parts": Case(
        raw=("loss=1", "steps=many", "data.loader=2"),
        says=(
            "error: 'loss': '1' is given for a whole FlowLoss: set a part, loss.",
            "'steps': 'many' is not valid: input should be a valid integer",
            "'data.loader': '2' is given for a whole LoaderConfig: set a part, data.loader.rows,",
        ),
    ),
    "an override of the whole loss of the RGBA-VAE": Case(
        stage=Stage.RGBA_VAE, raw=("loss=1",), says=("a whole VAELoss: set a part, loss.reconstruction",)
    ),
    "counts that are none": Case(
        raw=("checkpoints.every=0", "steps=-1"),
        says=("checkpoints.every is 0 and must be at least 1\n", "steps is -1 and must be at least 1\n"),
    ),
    "no start and no data": Case(
        changes={"start.checkpoint": "{given}/nothing", "data.sources": '["{given}/nowhere"]'},
        says=("{given}/nothing", "{given}/nowhere: no records: expected dataset_info.json"),
    ),
    "an override without value": Case(raw=("steps",), says=("'steps': write an override as name=value",)),
    "a task of another stage": Case(
        stage=ONE,
        raw=('data.loader.tasks.mix=[["image-to-layers", 1]]',),
        says=("stage1_text_to_rgba cannot train image-to-layers", "its tasks are text-to-RGB, text-to-RGBA"),
    ),
    "a task that is none": Case(
        raw=('data.loader.tasks.mix=[["image-to-video", 1]]',),
        says=(
            "'data.loader.tasks.mix'",
            "is not valid: input should be 'reconstruction', ",
            " or 'image-to-layers'",
        ),
    ),
    "parts of unlike size": Case(
        changes={"optimiser.accumulate": 3}, says=("rows 8 is no multiple of optimiser.accumulate 3", "raise the one")
    ),
    "more devices than there are": Case(
        changes={"mesh.fsdp": 2}, says=("data=8", "fsdp=2", "makes 16 devices, but 8 are given")
    ),
    "microbatches that the mesh does not divide": Case(
        changes={"data.loader.rows": 16, "optimiser.accumulate": 4},
        says=("16 rows in 4 microbatches are 4 rows each, which do not divide over 8 parts", "a multiple of 32"),
    ),
    "rows that the mesh does not divide": Case(
        changes={"data.loader.rows": 4}, says=("4 rows do not divide over 8 parts of the mesh", "a multiple of 8")
    ),
    "a spread that the heads do not divide into": Case(
        changes={"mesh.data": 1, "mesh.context": 8, "spread": "ulysses"},
        says=("the mesh does not fit", "tensor x context = 1 x 8 to divide 2 heads: use gather or ring"),
    ),
    "attention of another device": Case(
        changes={"attention": "cudnn"}, says=("cudnn attention runs on NVIDIA GPUs, and the devices are cpu",)
    ),
    "nothing to train": Case(
        changes={"trainable": "no_such_layer"}, says=("trainable 'no_such_layer' fits no parameter, such as",)
    ),
    "no linear map to change": Case(
        changes={"lora.targets": "no_such_map"},
        says=("lora.targets 'no_such_map' fits none of the 20 linear maps, which are backbone/blocks/image/k, ",),
    ),
    "low-rank changes and trained parameters": Case(
        changes={"lora.rank": 4, "trainable": "image_out"},
        says=("trainable 'image_out' selects parameters, and lora freezes all of them: set lora=none",),
    ),
    "low-rank changes of the RGBA-VAE": Case(
        stage=Stage.RGBA_VAE,
        changes={"lora.rank": 4},
        says=("lora changes the transformer, and rgba_vae trains the VAE: set lora=none",),
    ),
    "a LoRA to start from": Case(
        changes={"start.checkpoint": "{given}/run/lora"},
        says=("{given}/run/lora is no checkpoint", "{given}/run/lora/pytorch_lora", called("convert export")),
    ),
    "the checkpoint of a run that made a LoRA": Case(
        changes={"start.checkpoint": "{given}/run/checkpoint"},
        says=("{given}/run/checkpoint is no checkpoint", "{given}/run/lora/pytorch_lora", called("convert export")),
    ),
    "a LoRA file without low-rank changes": Case(
        changes={"start.lora": "{given}/run/lora/pytorch_lora_weights.safetensors"},
        says=("pytorch_lora_weights.safetensors, and lora is none: set lora.rank to that of the file",),
    ),
    "a LoRA file that is not there": Case(
        changes={"start.lora": "{given}/nothing.safetensors", "lora.rank": 4},
        says=("{given}/nothing.safetensors: there is no such file: set start.lora",),
    ),
    "no regular expression": Case(changes={"trainable": "("}, says=("trainable '(' is no regular expression",)),
    "more prompts dropped than there are": Case(
        raw=("loss.caption_dropout=2",), says=("caption_dropout 2.0 must lie between 0 and 1",)
    ),
    "latents of another VAE": Case(
        changes=LATENTS | {"start.vae": "{given}/other"},
        says=("{given}/latents: was encoded by another VAE", f"run {called('cache-latents')} again"),
    ),
    "latents of another prompt for none": Case(
        changes=LATENTS | {"loss.no_prompt": "nothing"},
        says=("{given}/latents: was encoded with no_prompt ' '", "loss.no_prompt is 'nothing'"),
    ),
    "latents of shorter prompts": Case(
        changes=LATENTS | {"data.text_tokens": 17},
        says=("{given}/latents: keeps 16 tokens of a prompt, but data.text_tokens is 17", "lower it"),
    ),
    "latents of larger pictures": Case(
        changes=LATENTS | {"data.loader.buckets.resolutions": "[64]", "data.loader.buckets.row_tokens": 12 * 16},
        says=("of 32 x 32 pixels, but the loader wants", "of 64 x 64", "buckets, max_layers"),
    ),
    "latents of more layers": Case(
        changes=LATENTS | {"data.loader.max_layers": 3},
        says=("holds 4 layers", "wants at most 3", "max_layers and row_tokens that the latents were cached with"),
    ),
    "latents of two folders": Case(
        changes=LATENTS | {"data.sources": '["{given}/latents", "{given}/latents"]'},
        says=(f"cached latents come from one folder: give {called('cache-latents')} all the sources",),
    ),
    "latents that are not there": Case(
        changes=LATENTS | {"data.sources": '["{scenes}"]'},
        says=("{scenes}/train.json: missing: run " + called("cache-latents"),),
    ),
    "latents of whole foregrounds for single layers": Case(
        stage=ONE,
        changes=LATENTS | {"data.loader.tasks.subject": "layer"},
        says=("{given}/latents", "data.inputs=pictures"),
    ),
    "latents for the RGBA-VAE": Case(
        stage=Stage.RGBA_VAE, changes=LATENTS, says=("{given}/latents", "reconstruction", "data.inputs=pictures")
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_cannot_be_trained_is_refused(given: Given, tmp_path, capsys, case):
    settings, said = case.filled(given)
    err = refused(capsys, arguments(case.stage, tmp_path / "run", settings), tmp_path)
    assert [part for part in said if part not in err] == [], err


CONFIGS = {
    "def config(": "FILE, line 1: '(' was never closed",
    "steps = 3": "FILE: defines no function config() that returns an Experiment",
    "import nothing_of_this_name": "FILE, line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'",
    "def config():\n    return wrong": "FILE, line 2: NameError: name 'wrong' is not defined",
}


@pytest.mark.parametrize(("text", "says"), CONFIGS.items())
def test_a_config_that_cannot_be_run(tmp_path, capsys, text, says):
    file = tmp_path / "mine.py"
    file.write_text(text)
    err = refused(capsys, [str(file), "--out", str(tmp_path / "run")], tmp_path / "run")
    assert err == f"error: {says.replace('FILE', str(file))}\n"


def test_a_config_that_is_not_there(tmp_path, capsys):
    err = refused(capsys, [str(tmp_path / "mine.py")], tmp_path / "run")
    begin = f"error: {tmp_path / 'mine.py'}: no such file, and no preset: give a file, or one of "
    assert err == f"{begin}{', '.join(preset_names())}\n"


def test_a_preset_that_is_not_there_is_answered_by_the_nearest(tmp_path, capsys):
    err = refused(capsys, ["configs/released/finetune_lorra.py"], tmp_path / "run")
    begin = "error: configs/released/finetune_lorra.py: no such file, and no preset: give a file, or one of "
    assert err.startswith(f"{begin}released/finetune_lora, ") and err.count(",") == 4 and err.count("\n") == 1


FAILED = ("no checkpoint to start from", "nothing to train", "fewer records to validate with than rows")


@pytest.mark.parametrize("wrong", FAILED)
@pytest.mark.full
def test_a_failed_start_claims_nothing(given: Given, tmp_path, capsys, monkeypatch, wrong):
    """The corrected command is not refused because the folder is of another experiment."""
    run = tmp_path / "run"
    refused(capsys, arguments(THREE, run, CASES[wrong].filled(given)[0]), run)
    corrected = arguments(THREE, run, given.world.settings(THREE, MESH))

    def stop_here(*_: object) -> None:
        raise ExperimentError("far enough")

    monkeypatch.setattr(setup, "fresh_state", stop_here)
    assert train.trained(corrected) == 2
    assert capsys.readouterr().err == "error: far enough\n"
    assert (run / "experiment.json").is_file()


def call(world: World, argv: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = environment(world.folder)
    return subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True, timeout=HANGS, check=False)


@pytest.mark.full
def test_a_wrong_path_corrected_trains(given: Given, one_device, tmp_path, capsys):
    """As a user meets it: a refusal, then the same folder with the right path, then another experiment in it."""
    run, world = tmp_path / "run", given.world
    few = {"steps": 1, "optimiser.warmup_steps": 0, "unroll": "false"}
    wrong = few | {"start.checkpoint": given.folder / "nothing"}
    ended = call(world, command(ONE, run, world.settings(ONE, wrong)), tmp_path)
    assert ended.returncode == 2 and not run.exists()
    assert ended.stderr.startswith("error: ") and str(given.folder / "nothing") in ended.stderr
    assert "Traceback" not in ended.stderr
    assert train.trained(arguments(ONE, run, world.settings(ONE, few))) == 0
    assert (run / "checkpoint" / "training.json").is_file()
    kept = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    err = refused(capsys, arguments(TWO, run, world.settings(TWO, few | MESH)), run)
    assert err.startswith(f"error: {run} is a run with other settings (stage, ") and "another --out" in err
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == kept


def test_the_shipped_config_without_its_files(one_device, tmp_path, capsys, monkeypatch):
    """The demonstration's third stage before its second: the message names what is missing."""
    run = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    err = refused(capsys, arguments(THREE, run, [f"start.checkpoint={tmp_path}/stage2/checkpoint"]), run)
    assert not run.exists()
    missing, made, *_ = err.splitlines()
    assert missing == f"error: {tmp_path}/stage2/checkpoint: there is no such folder"
    assert made.startswith(
        "build/demo_training/latents_grouped and build/demo_training/rgba_vae/checkpoint must be made"
    )
