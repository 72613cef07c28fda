"""What the four stages of the demonstration model share: 64-pixel scenes on two cores (docs/demo.md)."""

from qil_jax.data.buckets import BucketConfig
from qil_jax.data.pipeline import LoaderConfig, Workers
from qil_jax.data.tasks import Task, TaskConfig
from qil_jax.training.stages import Precision

FOLDER = "build/demo_training"
SCENES, LATENTS, BASE = f"{FOLDER}/scenes", f"{FOLDER}/latents", f"{FOLDER}/base"
VAE = f"{FOLDER}/rgba_vae/checkpoint"
SIDE, TOKEN = 64, 16
PRECISION = Precision.FP32  # a CPU is slow in bf16


def run_of(stage: str) -> str:
    """The checkpoint that a stage's run leaves."""
    return f"{FOLDER}/{stage}/checkpoint"


def loader(rows: int, mix: tuple[tuple[Task, float], ...], *, pictures: int, flatten: float = 0.3) -> LoaderConfig:
    """Rows of so many pictures each."""
    buckets = BucketConfig(
        resolutions=(SIDE,),
        aspect_ratios=((1, 1),),
        multiple=32,
        token_pixels=TOKEN,
        row_tokens=pictures * (SIDE // TOKEN) ** 2,
    )
    return LoaderConfig(rows=rows, max_layers=5, tasks=TaskConfig(mix=mix, flatten=flatten), buckets=buckets)


WORKERS = Workers(threads=1, ahead=4)
