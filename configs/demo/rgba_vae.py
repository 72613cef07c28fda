"""The demonstration model's RGBA-VAE, trained from random initialisation."""

from configs.demo.common import BASE, PRECISION, WORKERS, loader, made_by, scenes_of
from qil_jax.choices import LRSchedule, Reconstruction
from qil_jax.loader.tasks import Task
from qil_jax.training.experiment import CheckpointConfig, DataConfig, Experiment, Start, ValidationConfig
from qil_jax.training.optimiser import OptimiserConfig
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.vae_loss import VAELoss


def config() -> Experiment:
    """Each row holds one picture: a composite or a layer of a scene."""
    return Experiment(
        stage=Stage.RGBA_VAE,
        start=Start(checkpoint=BASE),
        data=DataConfig(
            sources=(scenes_of("grouped"),),
            loader=loader(16, ((Task.RECONSTRUCTION, 1.0),), pictures=1, flatten=0.1),
            workers=WORKERS,
        ),
        # No reference: there is no VAE before this one.
        loss=VAELoss(reconstruction=Reconstruction.AB_MSE, colour=0.03, perceptual=0.0, kl=1e-5, reference_kl=0.0),
        steps=6000,
        optimiser=OptimiserConfig(
            learning_rate=1e-3, schedule=LRSchedule.COSINE, warmup_steps=50, final_fraction=0.02, ema_decay=0.998
        ),
        precision=PRECISION,
        checkpoints=CheckpointConfig(every=250),
        validation=ValidationConfig(every=500, batches=8),
        log_every=25,
        made_by=made_by(),
    )
