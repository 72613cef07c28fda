"""The demonstration model, stage 3: a picture to its layers. First on scenes whose things are merged by depth."""

from configs.demo.common import run_of
from configs.demo.diffusion import diffusion
from qil_jax.flow.loss import FlowLoss
from qil_jax.loader.tasks import Task
from qil_jax.training.experiment import Experiment
from qil_jax.training.optimiser import LRSchedule, OptimiserConfig
from qil_jax.training.stages import Stage


def config() -> Experiment:
    """From stage 2. What a picture's layers are is settled at high noise, and no prompt is the usual case."""
    return diffusion(
        Stage.IMAGE_TO_LAYERS,
        run_of("stage2_text_to_layers"),
        ((Task.IMAGE_TO_LAYERS, 1.0),),
        data="grouped",
        rows=16,
        steps=2636,
        loss=FlowLoss(shift=3.0, caption_dropout=0.5),
        optimiser=OptimiserConfig(
            learning_rate=8e-4, schedule=LRSchedule.CONSTANT, warmup_steps=100, beta2=0.99, ema_decay=0.999
        ),
    )
