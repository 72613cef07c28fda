"""The demonstration model, stage 1: a caption to the flat picture, or to its foreground with alpha."""

from configs.demo.common import BASE
from configs.demo.diffusion import diffusion
from qil_jax.flow.loss import FlowLoss
from qil_jax.loader.tasks import Task
from qil_jax.training.experiment import Experiment
from qil_jax.training.optimiser import LRSchedule, OptimiserConfig
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
        loss=FlowLoss(shift=1.0, caption_dropout=0.1),
        optimiser=OptimiserConfig(
            learning_rate=1e-3,
            schedule=LRSchedule.COSINE,
            warmup_steps=100,
            final_fraction=0.05,
            beta2=0.99,
            ema_decay=0.999,
        ),
    )
