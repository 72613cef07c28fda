"""Stage 2 of the demonstration model: from a caption to the composite and its layers."""

from configs.demo.diffusion import adamw, diffusion
from qil_jax.flow.loss import FlowLoss
from qil_jax.loader.tasks import Task
from qil_jax.training.experiment import Experiment
from qil_jax.training.stages.kinds import Stage


def config() -> Experiment:
    """The run starts from the checkpoint of stage 1."""
    return diffusion(
        "stage2_text_to_layers",
        Stage.TEXT_TO_LAYERS,
        ((Task.TEXT_TO_LAYERS, 1.0),),
        rows=16,
        steps=400,
        loss=FlowLoss(shift=2.0, caption_dropout=0.1),
        optimiser=adamw(1e-3, final_fraction=0.05),
    )
