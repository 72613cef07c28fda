"""All parameters of the released Qwen-Image-Layered fine-tuned on your own layered images, on v5p-32.

The paper's: learning rate 1e-5. Ours: all else; 1e-5 is also what others fine-tune the release with.

A step is 16 rows, one on each of 16 chips, of 12 pictures of 640 x 640 pixels: a sample of 10 layers or several of
fewer, 307,200 image tokens. Parameters, EMA and moments take 20.5 GB on each chip, the frozen text encoder 1.0 GB.
"""

from configs.released.common import finetuning
from qil_jax.mesh import MeshShape
from qil_jax.training.experiment import Experiment
from qil_jax.training.optimiser import OptimiserConfig


def config() -> Experiment:
    """Pictures and captions are encoded while training: no latents need to be cached."""
    return finetuning(
        MeshShape(fsdp=16),
        optimiser=OptimiserConfig(learning_rate=1e-5, warmup_steps=100, ema_decay=0.999),
        steps=5000,
    )
