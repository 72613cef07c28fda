"""Constants and helpers shared by the demonstration model's configs: small scenes, two CPU cores (docs/demo.md)."""

import dataclasses

from qil_jax.choices import Precision
from qil_jax.loader.buckets import BucketConfig
from qil_jax.loader.config import LoaderConfig, Workers
from qil_jax.loader.tasks import Task, TaskConfig
from qil_jax.training.experiment import Made

FOLDER = "build/demo_training"
BASE = f"{FOLDER}/base"
VAE = f"{FOLDER}/rgba_vae/checkpoint"
VAE_128 = f"{FOLDER}/rgba_vae_128/checkpoint"
SIDE, SIDE_128, TOKEN = 64, 128, 16
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


SHIPPED = run_of("stage3_image_to_layers_varied")
"""The checkpoint that ships, before its weights are rounded to bf16; the runs at 128 pixels go on from it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """A dataset of scenes and of their latents.

    Attributes:
      preset: preset of `qil make-scenes`.
      count: number of scenes.
      seed: seed of the first scene. Equal seeds of different presets give similar scenes.
      vae: checkpoint folder of the RGBA-VAE that encodes them.
    """

    preset: str
    count: int
    seed: int = 0
    vae: str = VAE


DATA = {
    "grouped": Data(preset="grouped", count=60_000),
    "ordered_8000": Data(preset="simple", count=8_000),
    "ordered": Data(preset="simple", count=60_000),
    "varied": Data(preset="varied", count=50_000),
    "design": Data(preset="design", count=30_000, vae=VAE_128),
    "photo": Data(preset="photo", count=15_000, seed=1_000_000, vae=VAE_128),
}
RUNS = {
    "stage1_text_to_rgba": (BASE, "grouped"),
    "stage2_text_to_layers": (run_of("stage1_text_to_rgba"), "grouped"),
    "stage3_image_to_layers": (run_of("stage2_text_to_layers"), "grouped"),
    "stage3_image_to_layers_ordered": (run_of("stage3_image_to_layers"), "ordered_8000"),
    "stage3_image_to_layers_long": (run_of("stage3_image_to_layers_ordered"), "ordered"),
    "stage3_image_to_layers_varied": (run_of("stage3_image_to_layers_long"), "varied"),
    "stage3_image_to_layers_design": (SHIPPED, "design"),
    "stage3_image_to_layers_photo": (run_of("stage3_image_to_layers_design"), "photo"),
}
"""The initial checkpoint of each diffusion run, and the dataset whose cached latents it reads."""


def made(folder: str, command: str, *needs: str) -> Made:
    """A folder made by a command that is run at the root of the repository."""
    return Made(folder=folder, command=command, needs=needs)


def made_by() -> tuple[Made, ...]:
    """The commands that make every folder these runs read, at the full size of tools/demo_training.py."""
    assets, base = f"{FOLDER}/assets", f"--preset train --captions {scenes_of('grouped')}"
    makers = [
        made(assets, f"qil fetch-assets --out {assets}"),
        made(BASE, f"python tools/make_demo_checkpoint.py {BASE} {base}", scenes_of("grouped")),
        made(VAE, f"qil train configs/demo/rgba_vae.py --out {FOLDER}/rgba_vae", scenes_of("grouped"), BASE),
        made(
            VAE_128, f"qil train configs/demo/rgba_vae_128.py --out {FOLDER}/rgba_vae_128", scenes_of("design"), SHIPPED
        ),
    ]
    for data, what in DATA.items():
        scenes, latents = scenes_of(data), latents_of(data)
        first = next(run for run, (_, read) in RUNS.items() if read == data)
        options = f"--checkpoint {BASE} --vae {what.vae} --out {latents} --config configs/demo/{first}.py"
        wanted = f"--count {what.count} --preset {what.preset} --seed {what.seed} --assets {assets}"
        makers += [
            made(scenes, f"qil make-scenes {wanted} --out {scenes}", assets),
            made(latents, f"qil cache-latents {scenes} {options}", scenes, BASE, what.vae),
        ]
    for run, (start, data) in RUNS.items():
        command = f"qil train configs/demo/{run}.py --out {FOLDER}/{run}"
        makers.append(made(run_of(run), command, start, DATA[data].vae, latents_of(data)))
    return tuple(makers)


def loader(
    rows: int, mix: tuple[tuple[Task, float], ...], *, pictures: int, flatten: float = 0.3, side: int = SIDE
) -> LoaderConfig:
    """A loader config whose rows hold `pictures` pictures of `side` pixels each."""
    buckets = BucketConfig(
        resolutions=(side,),
        aspect_ratios=((1, 1),),
        multiple=32,
        token_pixels=TOKEN,
        row_tokens=pictures * (side // TOKEN) ** 2,
    )
    return LoaderConfig(rows=rows, max_layers=5, tasks=TaskConfig(mix=mix, flatten=flatten), buckets=buckets)


WORKERS = Workers(threads=1, ahead=4)
