"""Constants and helpers shared by the demonstration model's configs: 64-pixel scenes, two CPU cores (docs/demo.md)."""

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
    """The folder to which tools/demo_training.py writes the scenes of a dataset."""
    return f"{FOLDER}/scenes_{data}"


def latents_of(data: str) -> str:
    """The folder to which tools/demo_training.py writes the cached latents of a dataset."""
    return f"{FOLDER}/latents_{data}"


def run_of(name: str) -> str:
    """The checkpoint folder that a run exports; a run has the name of its config file."""
    return f"{FOLDER}/{name}/checkpoint"


DATA = {
    "grouped": ("grouped", 60_000),
    "ordered_8000": ("simple", 8_000),
    "ordered": ("simple", 60_000),
    "varied": ("varied", 50_000),
}
"""The preset of tools/make_scenes.py and the number of scenes of each dataset."""
RUNS = {
    "stage1_text_to_rgba": (BASE, "grouped"),
    "stage2_text_to_layers": (run_of("stage1_text_to_rgba"), "grouped"),
    "stage3_image_to_layers": (run_of("stage2_text_to_layers"), "grouped"),
    "stage3_image_to_layers_ordered": (run_of("stage3_image_to_layers"), "ordered_8000"),
    "stage3_image_to_layers_long": (run_of("stage3_image_to_layers_ordered"), "ordered"),
    "stage3_image_to_layers_varied": (run_of("stage3_image_to_layers_long"), "varied"),
}
"""The initial checkpoint of each diffusion run, and the dataset whose cached latents it reads."""


def made(folder: str, command: str, *needs: str) -> Made:
    """A folder made by a Python command that is run at the root of the repository."""
    return Made(folder=folder, command=f"python {command}", needs=needs)


def made_by() -> tuple[Made, ...]:
    """The commands that make every folder these runs read, at the full size of tools/demo_training.py."""
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
    """A loader config whose rows hold `pictures` pictures each."""
    buckets = BucketConfig(
        resolutions=(SIDE,),
        aspect_ratios=((1, 1),),
        multiple=32,
        token_pixels=TOKEN,
        row_tokens=pictures * (SIDE // TOKEN) ** 2,
    )
    return LoaderConfig(rows=rows, max_layers=5, tasks=TaskConfig(mix=mix, flatten=flatten), buckets=buckets)


WORKERS = Workers(threads=1, ahead=4)
