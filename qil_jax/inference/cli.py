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

from qil_jax.command_line import Parser
from qil_jax.limits import MAX_LAYERS, MAX_SEED, integer_problems, resolution_problems

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from qil_jax.inference.job import JobOptions, Outcome, Task
    from qil_jax.inference.request import Settings

OnCount = Callable[[int, int], None]
OWN = "default: what the checkpoint's qil.json says, else "
SHOWN = 10
"""Pictures whose sizes are told one by one."""
DECIDING = ("layers", "steps", "guidance", "negative_prompt", "resolution", "rescale", "seed", "dtype", "output_size")
"""Arguments that decide a result, besides the picture, its prompt and the checkpoint."""


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
    prompt: str | None
    resolution: int
    rescale: str
    output_size: str
    seed: int
    samples: int
    batch: int
    dtype: str | None
    mesh: str
    skip_bad: bool
    overwrite: bool

    def options(self) -> "JobOptions":
        """What holds for every picture."""
        from qil_jax.inference.job import JobOptions

        names = [field.name for field in dataclasses.fields(JobOptions) if field.name != "own_size"]
        return JobOptions(**{name: getattr(self, name) for name in names}, own_size=self.output_size == "input")

    def settings(self) -> "Settings":
        """What a whole batch shares."""
        from qil_jax.flow import Rescale
        from qil_jax.inference.request import Settings

        return Settings(steps=self.steps, guidance=self.guidance, rescale=Rescale(self.rescale))

    def deciding(self) -> dict[str, Any]:
        """What decides a result, for its JSON."""
        return {name: getattr(self, name) for name in DECIDING}

    def require_memory(self, tasks: Sequence["Task"], mesh: "Mesh") -> None:
        """Refuse what cannot fit, before anything is loaded.

        Raises:
          ValueError: with the figures.
        """
        from qil_jax.inference.memory import Drawing, plan_checkpoint_memory, require_memory

        drawings = [Drawing.of(t.picture.size, resolution=self.resolution, layers=self.layers) for t in tasks]
        largest = sorted(drawings, key=lambda drawing: math.prod(drawing.size))[-self.batch :]
        require_memory(plan_checkpoint_memory(self.checkpoint, largest, self.settings(), dtype=self.dtype), mesh)


@dataclasses.dataclass(kw_only=True)
class Ledger:
    """What a run has to do and has done, known also when it is cut off.

    Attributes:
      tasks: every decomposition that was asked for.
      left: those that no earlier run had finished.
      done: what became of those, so far.
      skipped: pictures left out, each with the reason.
    """

    tasks: "list[Task]" = dataclasses.field(default_factory=list)
    left: "list[Task]" = dataclasses.field(default_factory=list)
    done: "list[Outcome]" = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)

    def summary(self) -> str:
        """How far the run came, in one line."""
        return f"{len(self.tasks) - len(self.left) + len(self.done)} of {len(self.tasks)} results are finished"

    def announce(self, resolution: int) -> None:
        """Say what sizes the pictures have for the model, and whether any of them has no prompt."""
        from qil_jax.inference.images import bucket_size

        pictures = {task.picture.path: task.picture for task in self.left}
        for path, picture in list(pictures.items())[:SHOWN]:
            width, height = bucket_size(*picture.size, resolution)
            own = "x".join(map(str, picture.size))
            print(f"{path.name}: {own} pixels, the model sees {width}x{height}")
        if len(pictures) > SHOWN:
            print(f"and {len(pictures) - SHOWN} more pictures")
        if any(not task.options.prompt_of(task.picture) for task in self.left):
            print("No --prompt given: captions by the model come in a later version, an empty prompt is used.")


def parse_arguments(argv: list[str]) -> Arguments:
    """Read the command line; on anything unusable print all that is wrong and exit with status 2."""
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        arguments, about = _completed(given)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    problems = _problems(arguments)
    if problems:
        parser.error("\n  ".join(["cannot start:", *problems]))
    if about:
        print(about)
    return arguments


def _parser() -> Parser:
    parser = Parser(prog="infer.py", description="Decompose pictures into editable RGBA layers.")
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="PICTURE_OR_FOLDER", help="pictures, and folders of pictures")
    add("--checkpoint", type=Path, help="folder of the released layout, or converted to orbax (default: a small model)")
    add("--out", type=Path, required=True, help="a folder for each picture is made in here")
    add("--layers", type=int, help=f"layers to make, 1 to {MAX_LAYERS} ({OWN}4)")
    add("--max-layers", type=int, default=MAX_LAYERS, help="allow more layers than the model was trained with")
    add("--steps", type=int, help=f"Euler steps ({OWN}50)")
    add("--guidance", type=float, help=f"guidance scale, 1 turns it off ({OWN}4.0)")
    add("--prompt", help="what each picture shows (default: what NAME.txt beside NAME.png says, else nothing)")
    add("--negative-prompt", default=" ", help="what guidance leads away from (default a space)")
    add("--resolution", type=int, help=f"size bucket: 640 or 1024 in the release ({OWN}640)")
    add("--rescale", default="norm", choices=("norm", "none"), help="length of guided velocities (default norm)")
    add("--output-size", default="model", choices=("model", "input"), help="size of the layers written (default model)")
    add("--seed", type=int, default=777, help=f"seed of the noise, 0 to {MAX_SEED} (default 777)")
    add("--samples", type=int, default=1, help="decompositions per picture (default 1)")
    add("--batch", type=int, default=1, help="decompositions at once (default 1)")
    add("--dtype", choices=("float32", "bfloat16"), default=None, help="compute precision (default: as stored)")
    add("--mesh", default="", help='devices, such as "data=2,tensor=4" (default: the first device)')
    add("--skip-bad", action="store_true", help="go on without pictures that cannot be read; exit status 3 if any")
    add("--overwrite", action="store_true", help="replace results that are there")
    return parser


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
    found = integer_problems("--max-layers", arguments.max_layers, least=1)
    if not found:
        problems = integer_problems("--layers", arguments.layers, least=1, most=arguments.max_layers)
        beyond = arguments.layers > arguments.max_layers
        hint = f"; the model was trained with at most {MAX_LAYERS}, --max-layers N allows more" if beyond else ""
        found += [problem + hint for problem in problems]
    for name in ("steps", "samples", "batch"):
        found += integer_problems(f"--{name}", getattr(arguments, name), least=1)
    found += integer_problems("--seed", arguments.seed, least=0, most=MAX_SEED)
    found += resolution_problems("--resolution", arguments.resolution)
    if not math.isfinite(arguments.guidance):
        found.append(f"--guidance must be a finite number, got {arguments.guidance}")
    if not arguments.checkpoint.is_dir():
        found.append(f"--checkpoint {arguments.checkpoint}: no such folder")
    return found


@contextmanager
def show_pictures() -> Iterator[OnCount]:
    """A bar on a terminal while pictures are read, nothing otherwise. Yields the callback for pictures."""
    columns = (TextColumn("reading pictures"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, disable=not sys.stdout.isatty(), transient=True) as progress:
        bar = progress.add_task("", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


@contextmanager
def show_progress(results: int, batch: int) -> Iterator[OnCount]:
    """A bar on a terminal, a line every tenth of a batch otherwise. Yields the callback for steps."""
    batches = -(-results // batch)
    done = 0

    if not sys.stdout.isatty():
        print(f"compiling batch 1/{batches}", flush=True)

        def line(step: int, steps: int) -> None:
            nonlocal done
            if step == steps or step % max(1, steps // 10) == 0:
                print(f"batch {done + 1}/{batches}: step {step}/{steps}", flush=True)
            done += step == steps

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("compiling", total=None)

        def advance(step: int, steps: int) -> None:
            nonlocal done
            progress.update(bar, description=f"batch {done + 1}/{batches}", total=steps, completed=step)
            done += step == steps

        yield advance


def report(ledger: Ledger) -> None:
    """Print what was made, what an earlier run had already finished, and what was skipped."""
    by_folder = {outcome.task.folder: outcome for outcome in ledger.done}
    table = Table("picture", "status", "batch's seconds", "PSNR dB", "folder")
    for task in ledger.tasks:
        outcome = by_folder.get(task.folder)
        if outcome is None:
            table.add_row(task.picture.path.name, "already finished", "", "", str(task.folder))
            continue
        name, seconds, psnr = task.picture.path.name, f"{outcome.batch_seconds:.1f}", f"{outcome.psnr:.2f}"
        table.add_row(name, "done", seconds, psnr, str(task.folder))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for reason in ledger.skipped:
        print(f"skipped: {reason}")
