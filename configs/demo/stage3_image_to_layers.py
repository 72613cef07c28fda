"""The demonstration model, stage 3: a picture to its layers. The longest stage, and what the model is for."""

from configs.demo.diffusion import diffusion, run_of
from qil_jax.data.tasks import Task
from qil_jax.training.experiment import Experiment
from qil_jax.training.stages import Stage


def config() -> Experiment:
    """From stage 2."""
    mix = ((Task.IMAGE_TO_LAYERS, 1.0),)
    start = run_of("stage2_text_to_layers")
    return diffusion(Stage.IMAGE_TO_LAYERS, start, mix, rows=16, steps=12000, learning_rate=1e-3)
