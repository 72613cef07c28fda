"""What the diffusion runs of the demonstration model share."""

from configs.demo.common import PRECISION, VAE, WORKERS, latents_of, loader, made_by
from qil_jax.flow.loss import FlowLoss
from qil_jax.loader.tasks import Task
from qil_jax.training.experiment import CheckpointConfig, DataConfig, Experiment, ValidationConfig
from qil_jax.training.optimiser import OptimiserConfig
from qil_jax.training.stages import Inputs, Stage, Start

Mix = tuple[tuple[Task, float], ...]


def diffusion(
    stage: Stage, start: str, mix: Mix, *, data: str, rows: int, steps: int, loss: FlowLoss, optimiser: OptimiserConfig
) -> Experiment:
    """Rows of twelve pictures: two or three samples of layers, or twelve single pictures."""
    return Experiment(
        stage=stage,
        start=Start(checkpoint=start, vae=VAE),
        data=DataConfig(
            sources=(latents_of(data),),
            inputs=Inputs.LATENTS,
            loader=loader(rows, mix, pictures=12),
            text_tokens=28,
            workers=WORKERS,
        ),
        loss=loss,
        steps=steps,
        optimiser=optimiser,
        precision=PRECISION,
        unroll=True,
        checkpoints=CheckpointConfig(every=250),
        validation=ValidationConfig(every=1000, batches=4, samples=6, steps=12),
        log_every=25,
        made_by=made_by(),
    )
