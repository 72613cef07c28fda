"""What the three diffusion stages of the demonstration model share."""

from configs.demo.common import BASE, FOLDER, LATENTS, PRECISION, VAE, WORKERS, loader, run_of
from qil_jax.data.tasks import Task
from qil_jax.flow.velocity import FlowLoss
from qil_jax.training.experiment import CheckpointConfig, DataConfig, Experiment, ValidationConfig
from qil_jax.training.optimiser import Course, OptimiserConfig
from qil_jax.training.stages import Inputs, Stage, Start

__all__ = ["BASE", "FOLDER", "diffusion", "run_of"]


def diffusion(
    stage: Stage, start: str, mix: tuple[tuple[Task, float], ...], *, rows: int, steps: int, learning_rate: float
) -> Experiment:
    """Rows of twelve pictures: two or three samples of layers, or twelve single pictures."""
    return Experiment(
        stage=stage,
        start=Start(checkpoint=start, vae=VAE),
        data=DataConfig(
            sources=(LATENTS,),
            inputs=Inputs.LATENTS,
            loader=loader(rows, mix, pictures=12),
            text_tokens=28,
            workers=WORKERS,
        ),
        # What a picture's layers are is settled at high noise; the checkpoint's sampler bends its steps alike.
        loss=FlowLoss(shift=3.0, dropped=0.1),
        steps=steps,
        optimiser=OptimiserConfig(
            learning_rate=learning_rate, course=Course.COSINE, warmup=100, floor=0.05, beta2=0.99, average=0.999
        ),
        precision=PRECISION,
        unroll=True,
        checkpoints=CheckpointConfig(every=250),
        validation=ValidationConfig(every=500, batches=8, samples=6, steps=12),
        log_every=50,
    )
