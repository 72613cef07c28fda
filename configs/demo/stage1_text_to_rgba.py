"""Stage 1 of the demonstration model: from a caption to the flat picture, or to its foreground with alpha."""

from configs.demo.diffusion import adamw, diffusion
from qil_jax.flow.loss import FlowLoss
from qil_jax.loader.tasks import Task
from qil_jax.training.experiment import Experiment
from qil_jax.training.stages.kinds import Stage


def config() -> Experiment:
    """Each of the two tasks is drawn with probability 1/2."""
    return diffusion(
        "stage1_text_to_rgba",
        Stage.TEXT_TO_RGBA,
        ((Task.TEXT_TO_RGB, 0.5), (Task.TEXT_TO_RGBA, 0.5)),
        rows=8,
        steps=200,
        loss=FlowLoss(shift=1.0, caption_dropout=0.1),
        optimiser=adamw(1e-3, final_fraction=0.05),
    )
