"""The demonstration model, stage 1: a caption to the flat picture, or to its foreground with alpha."""

from configs.demo.common import BASE
from configs.demo.diffusion import diffusion
from qil_jax.data.tasks import Task
from qil_jax.flow.velocity import FlowLoss
from qil_jax.training.experiment import Experiment
from qil_jax.training.optimiser import Course, OptimiserConfig
from qil_jax.training.stages import Stage


def config() -> Experiment:
    """Both tasks half of the time."""
    return diffusion(
        Stage.TEXT_TO_RGBA,
        BASE,
        ((Task.TEXT_TO_RGB, 0.5), (Task.TEXT_TO_RGBA, 0.5)),
        data="grouped",
        rows=8,
        steps=200,
        loss=FlowLoss(shift=1.0, dropped=0.1),
        optimiser=OptimiserConfig(
            learning_rate=1e-3, course=Course.COSINE, warmup=100, floor=0.05, beta2=0.99, average=0.999
        ),
    )
