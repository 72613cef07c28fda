"""A LoRA of the released Qwen-Image-Layered on your own layered images, on 8 devices of one host (v6e-8, 8 H100).

DiffSynth-Studio's: learning rate 1e-4, weight decay 0.01, rank 32, alpha 32, the targets (attention, the output of
both MLPs, modulation). Ours: all else. The paper trains no LoRA.

A step is 8 rows, one on each device, of 12 pictures of 640 x 640 pixels: a sample of 10 layers or several of fewer,
153,600 image tokens. The frozen transformer takes 5.1 GB of bf16 on each device, the text encoder 1.9 GB, the factors
with EMA and moments 2.8 GB.
"""

import dataclasses

from configs.released.common import finetuning
from qil_jax.mesh import MeshShape
from qil_jax.training.experiment import Experiment
from qil_jax.training.lora import LoRAConfig
from qil_jax.training.optimiser import OptimiserConfig


def config() -> Experiment:
    """Only the factors are trained, averaged and saved."""
    experiment = finetuning(
        MeshShape(fsdp=8),
        optimiser=OptimiserConfig(learning_rate=1e-4, warmup_steps=50, weight_decay=0.01, ema_decay=0.99),
        steps=2000,
    )
    return dataclasses.replace(experiment, lora=LoRAConfig())
