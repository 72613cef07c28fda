"""The command line of infer.py: arguments checked before anything heavy is imported, progress, and a summary."""

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from qil_jax.inference.job import JobOptions, Outcome, Task
    from qil_jax.inference.request import Settings

OnStep = Callable[[int, int], None]
OWN = "default: what the checkpoint's qil.json says, else "


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The command line, checked."""

    inputs: list[Path]
    checkpoint: Path
    out: Path
    layers: int
    max_layers: int
    steps: int
    guidance: float
    negative_prompt: str
    prompt: str
    resolution: int
    rescale: str
    seed: int
    samples: int
    batch: int
    dtype: str | None
    mesh: str
    overwrite: bool

    def options(self) -> "JobOptions":
        """What goes into every request."""
        from qil_jax.inference.job import JobOptions

        return JobOptions(**{field.name: getattr(self, field.name) for field in dataclasses.fields(JobOptions)})

    def settings(self) -> "Settings":
        """What a whole batch shares."""
        from qil_jax.flow import Rescale
        from qil_jax.inference.request import Settings

        return Settings(steps=self.steps, guidance=self.guidance, rescale=Rescale(self.rescale))

    def record(self) -> dict[str, Any]:
        """What decides the result, for its JSON. A result made with an equal record need not be made again."""
        names = [
            "layers",
            "steps",
            "guidance",
            "negative_prompt",
            "prompt",
            "resolution",
            "rescale",
            "seed",
            "samples",
            "dtype",
        ]
        return {"checkpoint": self.checkpoint.name, **{name: getattr(self, name) for name in names}}


def parse_arguments(argv: list[str]) -> Arguments:
    """Read the command line; on anything unusable print all that is wrong and exit with status 2."""
    parser = argparse.ArgumentParser(prog="infer.py", description="Decompose pictures into editable RGBA layers.")
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="PICTURE_OR_FOLDER")
    add("--checkpoint", type=Path, help="folder of the released layout, or converted to orbax (default: a small model)")
    add("--out", type=Path, required=True, help="a folder for each picture is made in here")
    add("--layers", type=int, help=f"layers to make, 1 to 20 ({OWN}4)")
    add("--max-layers", type=int, default=20, help="allow more layers than the model was trained with")
    add("--steps", type=int, help=f"Euler steps ({OWN}50)")
    add("--guidance", type=float, help=f"guidance scale, 1 turns it off ({OWN}4.0)")
    add("--prompt", default="", help="what the whole picture shows")
    add("--negative-prompt", default=" ", help="what guidance leads away from (default a space)")
    add("--resolution", type=int, help=f"size bucket: 640 or 1024 in the release ({OWN}640)")
    add("--rescale", default="norm", choices=("norm", "none"), help="length of guided velocities (default norm)")
    add("--seed", type=int, default=777, help="seed of the noise (default 777)")
    add("--samples", type=int, default=1, help="decompositions per picture (default 1)")
    add("--batch", type=int, default=1, help="pictures at once (default 1)")
    add("--dtype", choices=("float32", "bfloat16"), default=None, help="compute precision (default: as stored)")
    add("--mesh", default="", help='devices, such as "data=2,tensor=4" (default: the first device)')
    add("--overwrite", action="store_true", help="replace existing results")
    given = parser.parse_args(argv)
    try:
        arguments, about = _completed(given)
    except ValueError as error:
        parser.error(str(error))
    problems = _problems(arguments)
    if problems:
        parser.error("\n  ".join(["cannot start:", *problems]))
    if about:
        print(about)
    if not arguments.prompt:
        print("No --prompt given: captions by the model come in a later version, an empty prompt is used.")
    return arguments


def _completed(given: argparse.Namespace) -> tuple[Arguments, str]:
    """The arguments with the checkpoint's defaults where nothing was said, and what it says about itself."""
    from qil_jax.inference.defaults import Defaults
    from qil_jax.shipped import shipped_checkpoint

    values = vars(given)
    checkpoint = shipped_checkpoint() if given.checkpoint is None else given.checkpoint
    own = dataclasses.asdict(Defaults.of(checkpoint))
    about = own.pop("about")
    said = {name: value for name, value in values.items() if value is not None}
    return Arguments(**{**values, **own, **said, "checkpoint": checkpoint}), about


def _problems(arguments: Arguments) -> list[str]:
    found = []
    if not 1 <= arguments.layers <= arguments.max_layers:
        hint = "; the model was trained with at most 20, --max-layers N allows more" if arguments.layers > 20 else ""
        found.append(f"--layers must be from 1 to {arguments.max_layers}, got {arguments.layers}{hint}")
    for name in ("steps", "samples", "batch"):
        if getattr(arguments, name) < 1:
            found.append(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.resolution < 32 or arguments.resolution % 32:
        found.append(f"--resolution must be a multiple of 32, got {arguments.resolution}")
    if not math.isfinite(arguments.guidance):
        found.append(f"--guidance must be a finite number, got {arguments.guidance}")
    if not arguments.checkpoint.is_dir():
        found.append(f"--checkpoint {arguments.checkpoint}: no such folder")
    return found


@contextmanager
def show_progress(pictures: int, batch: int) -> Iterator[OnStep]:
    """A bar on a terminal, a line every tenth of a batch otherwise. Yields the callback for steps."""
    batches = -(-pictures // batch)
    done = 0

    if not sys.stdout.isatty():

        def line(step: int, steps: int) -> None:
            nonlocal done
            if step == steps or step % max(1, steps // 10) == 0:
                print(f"batch {done + 1}/{batches}: step {step}/{steps}", flush=True)
            done += step == steps

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("loading", total=None)

        def advance(step: int, steps: int) -> None:
            nonlocal done
            progress.update(bar, description=f"batch {done + 1}/{batches}", total=steps, completed=step)
            done += step == steps

        yield advance


def report(tasks: Sequence["Task"], done: Sequence["Outcome"]) -> None:
    """Print what was made and what an earlier run had already finished."""
    by_folder = {outcome.task.folder: outcome for outcome in done}
    table = Table("picture", "status", "seconds", "PSNR dB", "folder")
    for task in tasks:
        outcome = by_folder.get(task.folder)
        if outcome is None:
            table.add_row(task.source.name, "already finished", "", "", str(task.folder))
            continue
        psnr = "" if outcome.psnr is None else f"{outcome.psnr:.2f}"
        table.add_row(task.source.name, outcome.status, f"{outcome.seconds:.1f}", psnr, str(task.folder))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
