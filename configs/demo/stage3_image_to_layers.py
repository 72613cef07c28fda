"""The demonstration model, stage 3: a picture to its layers. First on scenes whose things are merged by depth."""

from configs.demo.common import run_of
from configs.demo.diffusion import diffusion
from qil_jax.data.tasks import Task
from qil_jax.flow.velocity import FlowLoss
from qil_jax.training.experiment import Experiment
from qil_jax.training.optimiser import Course, OptimiserConfig
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
        loss=FlowLoss(shift=3.0, dropped=0.5),
        optimiser=OptimiserConfig(learning_rate=8e-4, course=Course.CONSTANT, warmup=100, beta2=0.99, average=0.999),
    )
