"""Configs shared by the diffusion runs of the demonstration model."""

from configs.demo.common import DATA, PRECISION, RUNS, SIDE, SIDE_128, WORKERS, latents_of, loader, made_by
from qil_jax.choices import Inputs, LRSchedule, OptimiserKind
from qil_jax.flow.loss import FlowLoss
from qil_jax.loader.tasks import Task
from qil_jax.training.experiment import CheckpointConfig, DataConfig, Experiment, Start, ValidationConfig
from qil_jax.training.optimiser import OptimiserConfig
from qil_jax.training.stages.kinds import Stage

Mix = tuple[tuple[Task, float], ...]


def diffusion(
    run: str,
    stage: Stage,
    mix: Mix,
    *,
    rows: int,
    steps: int,
    loss: FlowLoss,
    optimiser: OptimiserConfig,
    side: int = SIDE,
) -> Experiment:
    """A run of `common.RUNS`, in rows of twelve pictures: two or three samples of layers, or twelve single pictures."""
    start, data = RUNS[run]
    return Experiment(
        stage=stage,
        start=Start(checkpoint=start, vae=DATA[data].vae),
        data=DataConfig(
            sources=(latents_of(data),),
            inputs=Inputs.LATENTS,
            loader=loader(rows, mix, pictures=12, side=side),
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


def adamw(learning_rate: float, *, final_fraction: float | None = None) -> OptimiserConfig:
    """AdamW with a learning rate that, after the warm-up, stays constant or decays by a cosine to `final_fraction`."""
    return OptimiserConfig(
        learning_rate=learning_rate,
        schedule=LRSchedule.CONSTANT if final_fraction is None else LRSchedule.COSINE,
        warmup_steps=100,
        final_fraction=final_fraction or 0.0,
        beta2=0.99,
        ema_decay=0.999,
    )


def image_to_layers(
    run: str, *, steps: int, learning_rate: float = 8e-4, final_fraction: float | None = None
) -> Experiment:
    """A run of stage 3 at 64 pixels."""
    return stage3(run, steps=steps, optimiser=adamw(learning_rate, final_fraction=final_fraction), side=SIDE)


def image_to_layers_128(run: str, *, steps: int, learning_rate: float, adamw_learning_rate: float) -> Experiment:
    """A run of stage 3 at 128 pixels by Muon, in microbatches of 4 rows, with which it takes below 6 GB of memory."""
    optimiser = OptimiserConfig(
        kind=OptimiserKind.MUON,
        learning_rate=learning_rate,
        adamw_learning_rate=adamw_learning_rate,
        schedule=LRSchedule.COSINE,
        warmup_steps=20,
        final_fraction=0.02,
        beta2=0.99,
        accumulate=4,
        ema_decay=0.995,
    )
    return stage3(run, steps=steps, optimiser=optimiser, side=SIDE_128)


def stage3(run: str, *, steps: int, optimiser: OptimiserConfig, side: int) -> Experiment:
    """A run of stage 3. High noise levels decide the decomposition, and inference mostly has an empty prompt."""
    return diffusion(
        run,
        Stage.IMAGE_TO_LAYERS,
        ((Task.IMAGE_TO_LAYERS, 1.0),),
        rows=16,
        steps=steps,
        loss=FlowLoss(shift=3.0, caption_dropout=0.5),
        optimiser=optimiser,
        side=side,
    )
