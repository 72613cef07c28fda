"""The command line of train.py."""

import dataclasses
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qil_jax.command_line import Parser
from qil_jax.training.disk import newest_step

if TYPE_CHECKING:
    from qil_jax.training.loop import Show


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """What the user gave."""

    config: Path
    out: Path
    set: tuple[str, ...]
    distributed: str | None
    profile: int | None
    argv: tuple[str, ...]

    def command(self) -> str:
        """How to call the program again."""
        return shlex.join(["python", "train.py", *self.argv])

    def standing(self) -> str:
        """What is done, and the command that goes on."""
        step = newest_step(self.out)
        return f"{'nothing' if step is None else f'step {step}'} is saved; to go on: {self.command()}"

    def last_words(self) -> str:
        """The same, from a program that ends at once: the bar has hidden the cursor."""
        Console().show_cursor()
        return f"ended: {self.standing()}"

    @contextmanager
    def progress(self, steps: int) -> "Iterator[Show]":
        """What shows the metrics: a bar on a terminal, else a line per report."""
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        terminal = sys.stdout.isatty()
        with Progress(*columns, TextColumn("{task.fields[line]}"), disable=not terminal, console=Console()) as progress:
            bar = progress.add_task("", total=steps, line="")

            def show(step: int, values: dict[str, float]) -> None:
                line = summary(values)
                if terminal:
                    progress.update(bar, completed=step, line=line)
                else:
                    print(f"step {step}  {line}", flush=True)

            yield show


def summary(values: dict[str, float]) -> str:
    """The few numbers that fit on a line."""
    wanted = ("loss", "gradient_norm", "samples_per_second", "tflops_per_second", "mfu", "goodput", "time/input")
    shown = [name for name in values if name in wanted or name.startswith("validation/loss") or "finite" in name]
    return "  ".join(
        f"{name.split('/', 1)[-1] if name.startswith('time') else name} {values[name]:.4g}" for name in shown
    )


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Read the command line; exits with 2 where it makes no sense."""
    parser = Parser(prog="train.py", description="Train one stage. A run that is there is continued.")
    parser.add_argument("config", type=Path, help="a file of configs/ with a function config()")
    parser.add_argument("--out", type=Path, help="folder of the run; default: runs/ and the config's own path")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="as optimiser.learning_rate=1e-4"
    )
    parser.add_argument("--distributed", metavar="WHERE", help="auto, or HOST:PORT,COUNT,INDEX")
    parser.add_argument("--profile", type=int, metavar="STEP", help="trace five steps into RUN/profile")
    values = vars(parser.parse_args(argv))
    out = values.pop("out") or Path("runs") / values["config"].with_suffix("").name
    return Arguments(**{**values, "set": tuple(values["set"])}, out=out, argv=tuple(argv))
