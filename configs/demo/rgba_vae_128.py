"""The decoder of the demonstration model's RGBA-VAE, trained on at 128 pixels."""

from configs.demo.common import PRECISION, SHIPPED, SIDE_128, WORKERS, loader, made_by, scenes_of
from qil_jax.choices import LRSchedule, Reconstruction
from qil_jax.loader.tasks import Task
from qil_jax.training.experiment import CheckpointConfig, DataConfig, Experiment, Start, ValidationConfig
from qil_jax.training.optimiser import OptimiserConfig
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.vae_loss import VAELoss


def config() -> Experiment:
    """The encoder is frozen, so that the transformer, which knows its latents, remains valid."""
    return Experiment(
        stage=Stage.RGBA_VAE,
        start=Start(checkpoint=SHIPPED),
        data=DataConfig(
            sources=(scenes_of("design"),),
            loader=loader(8, ((Task.RECONSTRUCTION, 1.0),), pictures=1, flatten=0.1, side=SIDE_128),
            workers=WORKERS,
        ),
        loss=VAELoss(reconstruction=Reconstruction.AB_MSE, colour=0.03, perceptual=0.0, kl=0.0, reference_kl=0.0),
        steps=1500,
        optimiser=OptimiserConfig(
            learning_rate=5e-4, schedule=LRSchedule.COSINE, warmup_steps=50, final_fraction=0.02, ema_decay=0.998
        ),
        trainable="^(post_quant_conv|decoder)/",
        precision=PRECISION,
        checkpoints=CheckpointConfig(every=250),
        validation=ValidationConfig(every=500, batches=8),
        log_every=25,
        made_by=made_by(),
    )
