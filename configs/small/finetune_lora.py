"""A LoRA of the shipped demonstration model on scenes of 64 pixels, in minutes on two CPU cores (docs/training.md)."""

import os

from qil_jax.choices import Precision
from qil_jax.flow.loss import FlowLoss
from qil_jax.loader.buckets import BucketConfig
from qil_jax.loader.config import LoaderConfig, Workers
from qil_jax.loader.tasks import Task, TaskConfig
from qil_jax.shipped import shipped_checkpoint
from qil_jax.training.experiment import CheckpointConfig, DataConfig, Experiment, Made, Start, ValidationConfig
from qil_jax.training.lora import LoRAConfig
from qil_jax.training.optimiser import OptimiserConfig
from qil_jax.training.stages.kinds import Stage

RECORDS = "data/scenes"
SIDE, TOKEN = 64, 16


def config() -> Experiment:
    """Eight rows of two or three samples each; noise levels and prompts as the shipped model was trained."""
    buckets = BucketConfig(
        resolutions=(SIDE,), aspect_ratios=((1, 1),), token_pixels=TOKEN, row_tokens=12 * (SIDE // TOKEN) ** 2
    )
    return Experiment(
        stage=Stage.IMAGE_TO_LAYERS,
        start=Start(checkpoint=os.path.relpath(shipped_checkpoint())),
        data=DataConfig(
            sources=(RECORDS,),
            loader=LoaderConfig(
                rows=8, max_layers=5, tasks=TaskConfig(mix=((Task.IMAGE_TO_LAYERS, 1.0),)), buckets=buckets
            ),
            text_tokens=28,
            workers=Workers(threads=1, ahead=4),
        ),
        loss=FlowLoss(shift=3.0, caption_dropout=0.5),
        steps=40,
        optimiser=OptimiserConfig(learning_rate=1e-3, warmup_steps=5, weight_decay=0.01, ema_decay=0.9),
        precision=Precision.FP32,
        lora=LoRAConfig(rank=8, alpha=8.0),
        checkpoints=CheckpointConfig(every=20),
        validation=ValidationConfig(every=20, batches=1, samples=4, steps=12),
        log_every=5,
        made_by=(
            Made(
                folder=RECORDS,
                command=f"qil make-scenes --count 400 --preset simple --side {SIDE} --out {RECORDS}",
            ),
        ),
    )
