"""The demonstration model, stage 2: a caption to the composite and its layers."""

from configs.demo.common import run_of
from configs.demo.diffusion import diffusion
from qil_jax.flow.loss import FlowLoss
from qil_jax.loader.tasks import Task
from qil_jax.training.experiment import Experiment
from qil_jax.training.optimiser import LRSchedule, OptimiserConfig
from qil_jax.training.stages import Stage


def config() -> Experiment:
    """From stage 1."""
    return diffusion(
        Stage.TEXT_TO_LAYERS,
        run_of("stage1_text_to_rgba"),
        ((Task.TEXT_TO_LAYERS, 1.0),),
        data="grouped",
        rows=16,
        steps=400,
        loss=FlowLoss(shift=2.0, caption_dropout=0.1),
        optimiser=OptimiserConfig(
            learning_rate=1e-3,
            schedule=LRSchedule.COSINE,
            warmup_steps=100,
            final_fraction=0.05,
            beta2=0.99,
            ema_decay=0.999,
        ),
    )
