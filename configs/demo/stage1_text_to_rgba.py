"""The demonstration model, stage 1: a caption to the flat picture, or to its foreground with alpha."""

from configs.demo.diffusion import BASE, diffusion
from qil_jax.data.tasks import Task
from qil_jax.training.experiment import Experiment
from qil_jax.training.stages import Stage


def config() -> Experiment:
    """Both tasks half of the time."""
    mix = ((Task.TEXT_TO_RGB, 0.5), (Task.TEXT_TO_RGBA, 0.5))
    return diffusion(Stage.TEXT_TO_RGBA, BASE, mix, rows=8, steps=600, learning_rate=1e-3)
