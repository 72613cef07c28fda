"""What the runs of the demonstration model share: 64-pixel scenes on two cores (docs/demo.md)."""

from qil_jax.loader.buckets import BucketConfig
from qil_jax.loader.config import LoaderConfig, Workers
from qil_jax.loader.tasks import Task, TaskConfig
from qil_jax.training.experiment import Made, Precision

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


DATA = {"grouped": ("grouped", 60_000), "ordered_8000": ("simple", 8_000), "ordered": ("simple", 60_000)}
"""Each dataset's preset of tools/make_scenes.py and number of scenes."""
RUNS = {
    "stage1_text_to_rgba": (BASE, "grouped"),
    "stage2_text_to_layers": (run_of("stage1_text_to_rgba"), "grouped"),
    "stage3_image_to_layers": (run_of("stage2_text_to_layers"), "grouped"),
    "stage3_image_to_layers_ordered": (run_of("stage3_image_to_layers"), "ordered_8000"),
    "stage3_image_to_layers_long": (run_of("stage3_image_to_layers_ordered"), "ordered"),
}
"""What each diffusion run starts from, and whose latents it reads."""


def made(folder: str, command: str, *needs: str) -> Made:
    """By a command as one writes it at the root of the repository."""
    return Made(folder=folder, command=f"python {command}", needs=needs)


def made_by() -> tuple[Made, ...]:
    """How everything is made that these runs read, at the full size of tools/demo_training.py."""
    assets, base = f"{FOLDER}/assets", f"--preset train --captions {scenes_of('grouped')}"
    makers = [
        made(assets, f"tools/fetch_assets.py --out {assets}"),
        made(BASE, f"tools/make_demo_checkpoint.py {BASE} {base}", scenes_of("grouped")),
        made(VAE, f"train.py configs/demo/rgba_vae.py --out {FOLDER}/rgba_vae", scenes_of("grouped"), BASE),
    ]
    for data, (preset, count) in DATA.items():
        scenes, latents = scenes_of(data), latents_of(data)
        first = next(run for run, (_, read) in RUNS.items() if read == data)
        options = f"--checkpoint {BASE} --vae {VAE} --out {latents} --config configs/demo/{first}.py"
        makers += [
            made(
                scenes,
                f"tools/make_scenes.py --count {count} --preset {preset} --assets {assets} --out {scenes}",
                assets,
            ),
            made(latents, f"tools/cache_latents.py {scenes} {options}", scenes, BASE, VAE),
        ]
    for run, (start, data) in RUNS.items():
        command = f"train.py configs/demo/{run}.py --out {FOLDER}/{run}"
        makers.append(made(run_of(run), command, start, VAE, latents_of(data)))
    return tuple(makers)


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
