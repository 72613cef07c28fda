"""The demonstration model, stage 3 to its end: 60,000 ordered scenes."""

from configs.demo.common import run_of
from configs.demo.diffusion import diffusion
from qil_jax.flow.loss import FlowLoss
from qil_jax.loader.tasks import Task
from qil_jax.training.experiment import Experiment
from qil_jax.training.optimiser import LRSchedule, OptimiserConfig
from qil_jax.training.stages import Stage


def config() -> Experiment:
    """The learning rate falls to a fiftieth; what is shipped is the newest average that judges best (docs/demo.md)."""
    return diffusion(
        Stage.IMAGE_TO_LAYERS,
        run_of("stage3_image_to_layers_ordered"),
        ((Task.IMAGE_TO_LAYERS, 1.0),),
        data="ordered",
        rows=16,
        steps=12000,
        loss=FlowLoss(shift=3.0, caption_dropout=0.5),
        optimiser=OptimiserConfig(
            learning_rate=8e-4,
            schedule=LRSchedule.COSINE,
            warmup_steps=100,
            final_fraction=0.02,
            beta2=0.99,
            ema_decay=0.999,
        ),
    )
