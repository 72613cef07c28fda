"""Folders, commands and settings shared by the presets of the full-size model (docs/training.md)."""

from qil_jax.choices import AttentionKind, Inputs, Remat
from qil_jax.flow.loss import FlowLoss
from qil_jax.loader.buckets import BucketConfig
from qil_jax.loader.config import LoaderConfig, Workers
from qil_jax.loader.tasks import Task, TaskConfig
from qil_jax.mesh import MeshShape
from qil_jax.training.experiment import CheckpointConfig, DataConfig, Experiment, Made, Start, ValidationConfig
from qil_jax.training.optimiser import OptimiserConfig
from qil_jax.training.stages.kinds import Stage

QWEN_IMAGE = "checkpoints/Qwen-Image"
QWEN_IMAGE_LAYERED = "checkpoints/Qwen-Image-Layered"
LPIPS = "checkpoints/lpips/vgg16.safetensors"
RECORDS = "data/layers"
LATENTS = "data/latents"
SIDE, TOKEN = 640, 16
PICTURE = (SIDE // TOKEN) ** 2
"""Tokens of a picture of 640 x 640 pixels; pictures of other aspect ratios have nearly as many."""

Mix = tuple[tuple[Task, float], ...]


def run_of(name: str) -> str:
    """The checkpoint folder that the run of a preset exports, if it is trained without --out."""
    return f"runs/{name}/checkpoint"


VAE = run_of("rgba_vae")
CHAIN = {
    "stage1_text_to_rgba": QWEN_IMAGE,
    "stage2_text_to_layers": run_of("stage1_text_to_rgba"),
    "stage3_image_to_layers": run_of("stage2_text_to_layers"),
}
"""The initial checkpoint of each stage that trains the transformer from Qwen-Image on."""


def made_by() -> tuple[Made, ...]:
    """The commands that make the folders which the presets read."""
    latents = f"qil cache-latents {RECORDS} --checkpoint {QWEN_IMAGE} --vae {VAE} --out {LATENTS}"
    makers = [
        *(
            Made(folder=folder, command=f"hf download Qwen/{folder.split('/')[1]} --local-dir {folder}")
            for folder in (QWEN_IMAGE, QWEN_IMAGE_LAYERED)
        ),
        Made(folder=RECORDS, command=f"qil build-dataset documents --out {RECORDS}"),
        Made(
            folder=LATENTS,
            command=f"{latents} --config configs/released/stage3_image_to_layers.py",
            needs=(RECORDS, QWEN_IMAGE, VAE),
        ),
        Made(folder=VAE, command="qil train configs/released/rgba_vae.py", needs=(RECORDS, QWEN_IMAGE)),
    ]
    for name, start in CHAIN.items():
        command = f"qil train configs/released/{name}.py"
        makers.append(Made(folder=run_of(name), command=command, needs=(start, VAE, LATENTS)))
    return tuple(makers)


def loader(rows: int, mix: Mix, *, pictures: int, max_layers: int = 20) -> LoaderConfig:
    """A loader whose rows have room for `pictures` pictures of 640 x 640 pixels each."""
    return LoaderConfig(
        rows=rows,
        max_layers=max_layers,
        tasks=TaskConfig(mix=mix),
        buckets=BucketConfig(resolutions=(SIDE,), token_pixels=TOKEN, row_tokens=pictures * PICTURE),
    )


WORKERS = Workers(processes=8, threads=2, ahead=2)
"""Of one host, which feeds four chips."""


def pretraining(name: str, stage: Stage, mix: Mix, *, pictures: int, steps: int, mesh: MeshShape) -> Experiment:
    """A stage of the chain from Qwen-Image, on cached latents, one row for each shard of the samples.

    The paper's: Adam with learning rate 1e-5, the number of steps, at most 20 layers, logit-normal noise levels.
    Ours: all else.
    """
    return Experiment(
        stage=stage,
        start=Start(checkpoint=CHAIN[name], vae=VAE),
        data=DataConfig(
            sources=(LATENTS,),
            inputs=Inputs.LATENTS,
            loader=loader(mesh.data * mesh.fsdp, mix, pictures=pictures),
            workers=WORKERS,
        ),
        loss=FlowLoss(),
        steps=steps,
        optimiser=OptimiserConfig(learning_rate=1e-5, warmup_steps=1000, ema_decay=0.9999),
        attention=AttentionKind.SPLASH,
        remat=Remat.BLOCK,
        mesh=mesh,
        checkpoints=CheckpointConfig(every=1000, keep_last=2, keep_every=50_000),
        validation=ValidationConfig(every=5000, batches=2, samples=2),
        made_by=made_by(),
    )


def finetuning(mesh: MeshShape, *, optimiser: OptimiserConfig, steps: int) -> Experiment:
    """Stage 3 from the released Qwen-Image-Layered, on pictures that are encoded while training."""
    return Experiment(
        stage=Stage.IMAGE_TO_LAYERS,
        start=Start(checkpoint=QWEN_IMAGE_LAYERED),
        data=DataConfig(
            sources=(RECORDS,),
            loader=loader(mesh.data * mesh.fsdp, ((Task.IMAGE_TO_LAYERS, 1.0),), pictures=12, max_layers=10),
            workers=WORKERS,
        ),
        loss=FlowLoss(),
        steps=steps,
        optimiser=optimiser,
        attention=AttentionKind.SPLASH,
        remat=Remat.BLOCK,
        mesh=mesh,
        checkpoints=CheckpointConfig(every=250, keep_last=2),
        validation=ValidationConfig(every=250, batches=2, samples=2),
        made_by=made_by(),
    )
