"""The demonstration model, stage 2: a caption to the composite and its layers."""

from configs.demo.diffusion import diffusion, run_of
from qil_jax.data.tasks import Task
from qil_jax.training.experiment import Experiment
from qil_jax.training.stages import Stage


def config() -> Experiment:
    """From stage 1."""
    mix = ((Task.TEXT_TO_LAYERS, 1.0),)
    start = run_of("stage1_text_to_rgba")
    return diffusion(Stage.TEXT_TO_LAYERS, start, mix, rows=16, steps=800, learning_rate=1e-3)
