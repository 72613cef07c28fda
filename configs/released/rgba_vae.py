"""The RGBA-VAE: Qwen-Image's RGB VAE with a fourth channel, on v5p-16.

The paper's: the extension from RGB (new weights 0, bias of alpha 1), the kinds of terms, the mix of RGB and RGBA.
AlphaVAE's (arXiv 2507.09308): the losses and their weights, flattening of 30 %, 8 pictures of 1024 pixels a step,
30,000 steps, learning rate 1e-5, betas 0.5 and 0.9, a cosine after 100 steps. Ours: no adversarial term, the EMA.

A step is 8 pictures, one on each chip, that is 131,072 latents or 34 MB of pixels. Parameters, EMA and moments take
0.7 GB on each chip, which holds all of them: the mesh splits the pictures only.
"""

from configs.released.common import LPIPS, QWEN_IMAGE, RECORDS, WORKERS, made_by
from qil_jax.choices import LRSchedule
from qil_jax.loader.buckets import BucketConfig
from qil_jax.loader.config import LoaderConfig
from qil_jax.loader.tasks import Task, TaskConfig
from qil_jax.mesh import MeshShape
from qil_jax.training.experiment import CheckpointConfig, DataConfig, Experiment, Start, ValidationConfig
from qil_jax.training.optimiser import OptimiserConfig
from qil_jax.training.stages.kinds import Stage
from qil_jax.training.vae_loss import VAELoss


def config() -> Experiment:
    """Each row holds one picture of 1024 x 1024 pixels: a composite or a layer."""
    buckets = BucketConfig(resolutions=(1024,), aspect_ratios=((1, 1),), row_tokens=64**2)
    return Experiment(
        stage=Stage.RGBA_VAE,
        start=Start(checkpoint=QWEN_IMAGE),
        data=DataConfig(
            sources=(RECORDS,),
            loader=LoaderConfig(
                rows=8, tasks=TaskConfig(mix=((Task.RECONSTRUCTION, 1.0),), flatten=0.3), buckets=buckets
            ),
            workers=WORKERS,
        ),
        loss=VAELoss(perceptual_weights=LPIPS),
        steps=30_000,
        optimiser=OptimiserConfig(
            learning_rate=1e-5, schedule=LRSchedule.COSINE, warmup_steps=100, beta1=0.5, beta2=0.9, ema_decay=0.999
        ),
        mesh=MeshShape(data=8),
        checkpoints=CheckpointConfig(every=1000),
        validation=ValidationConfig(every=1000, batches=8, samples=8),
        made_by=made_by(),
    )
