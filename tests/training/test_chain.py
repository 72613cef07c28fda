"""From a checkpoint of Qwen-Image that diffusers wrote, through all four stages, to layers equal to diffusers'."""

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import VAE, assert_same_layers, build_tiny_text_to_image, layers_of
from diffusers import QwenImageLayeredPipeline
from PIL import Image
from runs import ROOT, World, command, on_one_device
from transformers import Qwen2VLProcessor

from qil_jax.cli import convert, train, validate
from qil_jax.cli.decompose import main as infer
from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import Request, Settings
from qil_jax.programs import ended
from qil_jax.training.stages.kinds import Stage
from qil_jax.weights import Checkpoint
from qil_jax.weights.values import checkpoint_values

pytestmark = pytest.mark.full

torch.set_grad_enabled(False)
PICTURE = Image.open(ROOT / "examples" / "chelsea.png").convert("RGBA").resize((300, 210))
LAST = Stage.IMAGE_TO_LAYERS
SPREAD = (Stage.RGBA_VAE, LAST)
"""Stages that run on eight devices; the others differ from the last in tasks alone, and run on one."""
NEW = {
    Stage.RGBA_VAE: {
        "input_channels": 4,
        "encoder/conv_in/kernel[:, :, 3:, :]": 0.0,
        "decoder/conv_out/kernel[:, :, :, 3:]": 0.0,
        "decoder/conv_out/bias[3:]": 1.0,
    },
    Stage.TEXT_TO_RGBA: {
        "use_additional_t_cond": True,
        "use_layer3d_rope": True,
        "modulation/addition/embedding": 0.0,
    },
}


class Chain:
    """The run of each stage, and what it printed. Each of the two networks is trained on eight devices once.

    A stage starts from the last one's checkpoint, and the last stage from what `qil export-run` exports of the run.
    """

    def __init__(self, world: World, folder: Path):
        self.folder, self.qwen_image = folder, folder / "qwen_image"
        self.printed: dict[Stage, str] = {}
        build_tiny_text_to_image(self.qwen_image)
        start = self.qwen_image
        for stage in Stage:
            changes = {"steps": 2, "start.checkpoint": start}
            changes["checkpoints.every"] = 1 if stage is LAST else 2
            if stage in SPREAD:
                changes |= {"data.loader.rows": 4, "mesh.fsdp": 4, "mesh.tensor": 2}
            settings = world.settings(stage, changes)
            with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
                if stage not in SPREAD:
                    on_one_device(patch)
                assert train.trained(command(stage, self.run(stage), settings)[2:]) == 0
            self.printed[stage] = printed.getvalue()
            assert self.export(self.run(stage), self.exported(stage)) == 0
            start = self.exported(stage) if stage is Stage.TEXT_TO_LAYERS else self.run(stage) / "checkpoint"

    def run(self, stage: Stage) -> Path:
        """The folder of a stage's run."""
        return self.folder / stage

    def exported(self, stage: Stage) -> Path:
        """What `qil convert export` made of the run."""
        return self.folder / f"{stage}_exported"

    def export(self, run: Path, out: Path, *more: str) -> int:
        """The exit status of `qil convert`."""
        return ended(convert.main, ["export", str(run), str(out), *more])


@pytest.fixture(scope="module")
def chain(world: World, tmp_path_factory) -> Chain:
    return Chain(world, tmp_path_factory.mktemp("chain"))


def files_of(folder: Path) -> dict[str, bytes]:
    """All that is not weights."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".safetensors"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize("stage", Stage)
def test_the_export_of_a_finished_run_is_its_checkpoint(chain: Chain, stage):
    folders = chain.run(stage) / "checkpoint", chain.exported(stage)
    ran, exported = (checkpoint_values(Checkpoint(folder), lambda _: None) for folder in folders)
    assert ran == exported
    assert files_of(folders[0]) == files_of(folders[1])
    assert validate.main([str(folders[1]), "--values"]) == 0


@pytest.mark.parametrize("stage", Stage)
def test_what_is_new_is_said(chain: Chain, stage):
    new = NEW.get(stage, {})
    lines = [line for line in chain.printed[stage].splitlines() if line.startswith("new in the network: ")]
    said = [f"{name} = {json.dumps(value)}" for name, value in new.items()]
    assert lines == ([f"new in the network: {', '.join(said)}"] if new else [])
    origin = json.loads((chain.exported(stage) / "training.json").read_text())
    assert origin == {"stage": stage.value, "step": 2, "ema": True} | ({"new": new} if new else {})


def test_it_ends_as_the_layered_pipeline_of_diffusers(chain: Chain, monkeypatch, small_bucket):
    folder, layers, steps = chain.run(LAST) / "checkpoint", 2, 4
    start = np.random.default_rng(0).standard_normal((1, layers + 1, 16, 24, VAE["z_dim"])).astype(np.float32)
    request = Request(image=PICTURE, layers=layers, prompt="a cat on a mat", latents=start)
    ours = Pipeline.load(folder).decompose([request], Settings(steps=steps))[0].layered.layers
    # The processor's part for videos needs torchvision, which has no build for a torch without CUDA.
    monkeypatch.setattr(Qwen2VLProcessor, "get_attributes", classmethod(lambda _: ["image_processor", "tokenizer"]))
    reference = QwenImageLayeredPipeline.from_pretrained(folder)
    assert_same_layers(ours, layers_of(reference, PICTURE, start, layers=layers, steps=steps))
    seen = reference.processor(
        images=[PICTURE.resize((640, 640))], text=["<|vision_start|><|image_pad|><|vision_end|>"], return_tensors="pt"
    )
    assert seen["image_grid_thw"].tolist() == [[1, 46, 46]]  # 640 pixels become 46 patches of 14
    assert (seen["input_ids"] == 151655).sum() == 529


def test_infer_reads_the_export_of_a_step_in_the_middle(chain: Chain, tmp_path, small_bucket):
    exported, picture = tmp_path / "exported", tmp_path / "picture.png"
    assert chain.export(chain.run(LAST), exported, "--step", "1", "--dtype", "bfloat16") == 0
    assert json.loads((exported / "training.json").read_text())["step"] == 1
    PICTURE.resize((64, 64)).save(picture)
    words = [picture, "--checkpoint", exported, "--out", tmp_path / "out", "--layers", 2, "--steps", 1]
    assert infer([*map(str, words), "--resolution", "256", "--dtype", "float32"]) == 0
    assert (tmp_path / "out" / "picture" / "02_Layer_2.png").is_file()


def test_the_rgba_vae_is_not_exported_without_its_data(chain: Chain, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(chain.run(Stage.RGBA_VAE), run)
    experiment = json.loads((run / "experiment.json").read_text())
    experiment["data"]["sources"] = ["no_scenes"]
    (run / "experiment.json").write_text(json.dumps(experiment))
    assert chain.export(run, out) == 2
    error = capsys.readouterr().err
    assert "no_scenes: no records" in error and "latents_mean and latents_std are measured on the run's data" in error
    assert f"relative paths in {run}/experiment.json" in error and not out.exists()
