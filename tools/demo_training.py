"""Train the demonstration model from nothing: data, base, and every run of configs/demo/ in order (docs/demo.md).

python tools/demo_training.py [--share 0.04] [--out build/demo_training] [--from-shipped]

--share 1 runs everything to its end; a smaller share takes that part of all scenes and steps, and less of the runs at
128 pixels. --from-shipped makes only these, which go on from the checkpoint that ships.
Existing results are kept, so an interrupted run continues.
"""

import dataclasses
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from qil_jax.cli import make_scenes
from qil_jax.command_line import Parser
from qil_jax.errors import QilError, say
from qil_jax.extras import require
from qil_jax.programs import called, run_main
from qil_jax.shipped import shipped_checkpoint
from qil_jax.terminal import Table

if TYPE_CHECKING:
    from qil_jax.training.experiment import Experiment

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "demo"
WRITTEN_FOR = "build/demo_training"
"""The folder that the configs name."""
LEAST_STEPS = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of the demonstration, defined by a file of configs/demo/.

    Attributes:
      name: name of the config file without its extension.
      shipped: step whose EMA weights are shipped; None is the last. A run of a smaller share trains this share of it.
      appended: whether the run goes on, at 128 pixels, from what ships. A smaller share trains a tenth of that share of
        its steps, as each takes five times as long.
    """

    name: str
    shipped: int | None = None
    appended: bool = False

    @property
    def config(self) -> Path:
        """Path of the config file."""
        return CONFIGS / f"{self.name}.py"

    def steps(self, whole: int, share: float) -> int:
        """Number of steps of a run that takes a share of the `whole` steps of its config."""
        if share == 1:
            return whole
        return max(LEAST_STEPS, round((self.shipped or whole) * share / (10 if self.appended else 1)))


RUNS = (
    Run(name="rgba_vae"),
    Run(name="stage1_text_to_rgba"),
    Run(name="stage2_text_to_layers"),
    Run(name="stage3_image_to_layers"),
    Run(name="stage3_image_to_layers_ordered"),
    Run(name="stage3_image_to_layers_long", shipped=3000),
    Run(name="stage3_image_to_layers_varied"),
    Run(name="rgba_vae_128", appended=True),
    Run(name="stage3_image_to_layers_design", appended=True),
    Run(name="stage3_image_to_layers_photo", appended=True),
)
LEAST_SCENES = 640
ENVIRONMENT = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "PYTHONPATH": str(ROOT),
}
"""Two devices use both cores where convolutions are small; retained memory is faster than newly mapped memory."""


def recipe_module() -> dict[str, Any]:
    """The names of configs/demo/common.py."""
    return runpy.run_path(str(CONFIGS / "common.py"))


class Recipe:
    """The stages of the demonstration in a folder.

    Attributes:
      out: folder of everything that is made.
      share: share of all scenes and training steps to run, above 0 and at most 1.
      from_shipped: whether the first run goes on from the checkpoint that ships, so that only appended runs are made.
    """

    def __init__(self, out: Path, share: float, *, from_shipped: bool = False):
        self.out, self.share, self.from_shipped = out, share, from_shipped
        self.runs = [run for run in RUNS if run.appended or not from_shipped]

    def scenes(self, assets: Path) -> None:
        """Make all datasets that the runs read."""
        for name, data in self.datasets().items():
            folder = self.out / f"scenes_{name}"
            if not list(folder.glob("layered_dataset/*/dataset_info.json")):
                wanted = str(max(LEAST_SCENES, round(data.count * self.share)))
                what = ("--count", wanted, "--preset", data.preset, "--seed", data.seed)
                call("make-scenes", *what, "--assets", assets, "--out", folder)

    def datasets(self) -> dict[str, Any]:
        """Name and definition of each dataset that the runs read."""
        common = recipe_module()
        read = {common["RUNS"][run.name][1] for run in self.runs if run.name in common["RUNS"]}
        return {name: data for name, data in common["DATA"].items() if name in read}

    def base(self) -> Path:
        """Make the checkpoint that training begins with, and return its folder."""
        folder = self.out / "base"
        if not folder.is_dir():
            call(
                "tools/make_demo_checkpoint.py", folder, "--preset", "train", "--captions", self.out / "scenes_grouped"
            )
        return folder

    def latents(self, experiment: "Experiment", config: Path) -> None:
        """Encode the latents that a run reads; existing ones are kept."""
        (source,) = experiment.data.sources
        name = Path(source).name.removeprefix("latents_")
        assert experiment.start.vae is not None
        where = ("--vae", self.moved(experiment.start.vae), "--out", self.out / f"latents_{name}", "--config", config)
        base = self.moved(recipe_module()["BASE"])
        call("cache-latents", self.out / f"scenes_{name}", "--checkpoint", base, *where, "--mesh", "data=2")

    def train(self, run: Run) -> list[float]:
        """Train a run for its share of steps, and return its logged losses."""
        from qil_jax.training.config_file import load_experiment
        from qil_jax.training.experiment import Inputs

        experiment = load_experiment(run.config)
        folder = self.out / run.name
        steps = run.steps(experiment.steps, self.share)
        if experiment.data.inputs is Inputs.LATENTS and not (folder / "checkpoint").is_dir():
            self.latents(experiment, run.config)
        changes = {
            "steps": steps,
            "mesh.data": 2,
            "data.sources": json.dumps([self.moved(source) for source in experiment.data.sources]),
            "start.checkpoint": self.moved(experiment.start.checkpoint),
            "start.vae": "none" if experiment.start.vae is None else self.moved(experiment.start.vae),
            "log_every": max(1, min(experiment.log_every, steps // 6)),
            "optimiser.warmup_steps": min(experiment.optimiser.warmup_steps, steps // 4),
        }
        sets = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
        call("train", run.config, "--out", folder, *sets)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if "loss" in line]

    def moved(self, path: str) -> str:
        """A path that the configs name, in the folder of this demonstration, or that of the checkpoint that ships."""
        common = recipe_module()
        if self.from_shipped and path in (common["BASE"], common["SHIPPED"]):
            return str(shipped_checkpoint())
        return str(self.out / Path(path).relative_to(WRITTEN_FOR))


def call(program: str, *arguments: object) -> None:
    """Run a verb of `qil`, or a program of this repository by its path; raises CalledProcessError if it fails."""
    words = [*front(program), *map(str, arguments)]
    say("$ python " + " ".join(words))
    subprocess.run([sys.executable, *words], check=True, env={**os.environ, **ENVIRONMENT})


def front(program: str) -> list[str]:
    """What Python is given to run a verb of `qil`, or a program of this repository by its path."""
    return [str(ROOT / program)] if program.endswith(".py") else ["-m", "qil_jax", program]


def main(argv: list[str]) -> int:
    """Train all runs and print their losses.

    Returns:
      1 if the loss of a run did not fall that made what ships; those that go on begin with a low one. Otherwise 0.
    """
    parser = Parser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.04, help="share of all scenes and steps (default 0.04)")
    parser.add_argument(
        "--out", type=Path, default=Path(WRITTEN_FOR), help="folder of everything (default %(default)s)"
    )
    parser.add_argument(
        "--from-shipped", action="store_true", help="only the runs at 128 pixels, from the checkpoint that ships"
    )
    arguments = parser.parse_args(argv)
    require("demo_training.py", *make_scenes.NEEDS, "resvg_py")
    if not 0 < arguments.share <= 1:
        parser.error(f"--share must be above 0 and at most 1, got {arguments.share}")
    recipe = Recipe(arguments.out.resolve(), arguments.share, from_shipped=arguments.from_shipped)
    assets = arguments.out / "assets"
    table, fell = Table("run", "lines", "first loss", "last loss"), True
    try:
        call("fetch-assets", "--out", assets)
        recipe.scenes(assets)
        if not recipe.from_shipped:
            recipe.base()
        for run in recipe.runs:
            losses = recipe.train(run)
            fell = fell and (losses[-1] < losses[0] or run.appended)
            table.add_row(run.name, str(len(losses)), f"{losses[0]:.4f}", f"{losses[-1]:.4f}")
    except subprocess.CalledProcessError as error:
        raise QilError(f"{' '.join(error.cmd)} gave {error.returncode}; say the same again to go on") from error
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    say(
        f"Next: {called('decompose')} PICTURE --out results --checkpoint {arguments.out / RUNS[-1].name / 'checkpoint'}"
    )
    return 0 if fell else 1


if __name__ == "__main__":
    run_main(main)
