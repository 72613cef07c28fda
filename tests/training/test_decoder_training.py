"""A run that trains the decoder of the RGBA-VAE alone: latents stay as they are, so it may follow every stage."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import World, command
from safetensors.numpy import load_file

from qil_jax import mesh
from qil_jax.cli import train
from qil_jax.training.config_file import load_experiment
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.stages.vae import trains_encoder
from tools import demo_training

DECODER = load_experiment(demo_training.CONFIGS / "rgba_vae_128.py").trainable


def tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    """The stored VAE of a checkpoint."""
    return load_file(checkpoint / "vae" / "diffusion_pytorch_model.safetensors")


def test_what_trains_the_encoder():
    paths = ["encoder/conv_in/kernel", "quant_conv/kernel", "post_quant_conv/kernel", "decoder/mid/encoder/kernel"]
    assert trains_encoder(paths, "") and trains_encoder(paths, "quant_conv") and trains_encoder(paths, "kernel")
    assert not trains_encoder(paths, DECODER)


@pytest.mark.parametrize("trainable", [DECODER, pytest.param("", marks=pytest.mark.slow)], ids=["decoder", "all"])
@pytest.mark.full
def test_latents_stay_where_the_encoder_is_frozen(world: World, tmp_path, monkeypatch, capsys, trainable):
    """The decoder alone is trained from a checkpoint of stage 3; the whole VAE is not, and has new latents."""
    monkeypatch.setattr(mesh, "make_mesh", lambda shape: mesh.single_device_mesh())
    start = tmp_path / "start"
    shutil.copytree(world.base, start)
    (start / "training.json").write_text(json.dumps({"stage": Stage.IMAGE_TO_LAYERS}))
    changes = {"start.checkpoint": start, "steps": 2, "data.loader.rows": 4}
    words = lambda trainable: command(
        Stage.RGBA_VAE, tmp_path / "run", world.settings(Stage.RGBA_VAE, changes | {"trainable": trainable})
    )[2:]
    assert train.trained(words("")) == 2
    assert "rgba_vae starts from rgba_vae" in capsys.readouterr().err
    if not trainable:
        (start / "training.json").unlink()
    assert train.trained(words(trainable)) == 0
    trained = tmp_path / "run" / "checkpoint"
    before, after = tensors(start), tensors(trained)
    configs = [json.loads((folder / "vae" / "config.json").read_text()) for folder in (start, trained)]
    encoder = [name for name in before if name.startswith(("encoder.", "quant_conv."))]
    kept = [before[name].tobytes() == after[name].tobytes() for name in encoder]
    assert all(kept) == bool(trainable) and encoder
    assert any(before[name].tobytes() != after[name].tobytes() for name in before if name.startswith("decoder."))
    statistics = ("latents_mean", "latents_std")
    assert all(configs[0][name] == configs[1][name] for name in statistics) == bool(trainable)
