"""What the runs of the demonstration model share: 64-pixel scenes on two cores (docs/demo.md)."""

from qil_jax.data.buckets import BucketConfig
from qil_jax.data.pipeline import LoaderConfig, Workers
from qil_jax.data.tasks import Task, TaskConfig
from qil_jax.training.stages import Precision

FOLDER = "build/demo_training"
BASE = f"{FOLDER}/base"
VAE = f"{FOLDER}/rgba_vae/checkpoint"
SIDE, TOKEN = 64, 16
PRECISION = Precision.FP32  # a CPU is slow in bf16


def scenes_of(data: str) -> str:
    """Where tools/demo_training.py puts the scenes of one of its datasets."""
    return f"{FOLDER}/scenes_{data}"


def latents_of(data: str) -> str:
    """Where it puts their latents."""
    return f"{FOLDER}/latents_{data}"


def run_of(name: str) -> str:
    """The checkpoint that a run leaves; a run is named as its config's file."""
    return f"{FOLDER}/{name}/checkpoint"


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
