"""The command line of `qil train`."""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qil_jax.command_line import Parser, seconds
from qil_jax.errors import QilError, say
from qil_jax.extras import require
from qil_jax.files import AnyPath, is_remote
from qil_jax.launch import DISTRIBUTED_HELP, WAIT, WAIT_HELP
from qil_jax.programs import UNUSABLE, called
from qil_jax.training.disk import newest_step, run_folder

HANG_TIMEOUT = 1800.0
"""Default of --hang-timeout, in seconds."""

if TYPE_CHECKING:
    from qil_jax.training.loop import Show


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The parsed arguments of the command line.

    Attributes:
      config: Python file that defines a function config().
      out: folder of the run.
      set: overrides of settings as NAME=VALUE.
      distributed: specification of the other processes (see `launch.connected`); None: a single process.
      wait: number of seconds within which all processes must have joined.
      profile: first of five steps that are profiled; None: no profile.
      check: whether to stop before the first step and report what the run would do.
      hang_timeout: number of seconds without anything new after which the process ends; 0: none.
      wandb: project at Weights & Biases to which metrics are sent; None: none.
      argv: unparsed arguments.
    """

    config: Path
    out: AnyPath
    set: tuple[str, ...]
    distributed: str | None
    wait: float
    profile: int | None
    check: bool
    hang_timeout: float
    wandb: str | None
    argv: tuple[str, ...]

    def options(self) -> dict[str, Any]:
        """The arguments that `train` takes as they are."""
        return {"profile": self.profile, "wandb": self.wandb}

    def command(self) -> str:
        """The shell command that runs the program again with the same arguments."""
        return called(shlex.join(["train", *self.argv]))

    def standing(self) -> str:
        """A line with the last saved step and the command that resumes the run."""
        step = newest_step(self.out)
        return f"{'nothing' if step is None else f'step {step}'} is saved; to go on: {self.command()}"

    def last_words(self) -> str:
        """The line of `standing` for a program that ends immediately; restores the cursor that the progress bar hid."""
        Console().show_cursor()
        return f"ended: {self.standing()}"

    @contextmanager
    def progress(self, steps: int) -> "Iterator[Show]":
        """A function that displays metrics by a progress bar on a terminal, and by printed lines otherwise."""
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        terminal = sys.stdout.isatty()
        with Progress(*columns, TextColumn("{task.fields[line]}"), disable=not terminal, console=Console()) as progress:
            bar = progress.add_task("", total=steps, line="")

            def show(step: int, values: dict[str, float]) -> None:
                line = summary(values)
                if terminal:
                    progress.update(bar, completed=step, line=line)
                else:
                    say(f"step {step}  {line}")

            yield show


def summary(values: dict[str, float]) -> str:
    """The metrics that fit on one line."""
    wanted = ("loss", "gradient_norm", "samples_per_second", "tflops_per_second", "mfu", "goodput", "time/input")
    shown = [name for name in values if name in wanted or name.startswith("validation/loss") or "finite" in name]
    return "  ".join(
        f"{name.split('/', 1)[-1] if name.startswith('time') else name} {values[name]:.4g}" for name in shown
    )


class _Help(argparse.Action):
    """Prints the help and, after a config, its settings. Only the settings require importing JAX."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        del values, option_string
        parser.print_help()
        if namespace.config is not None:
            from qil_jax.training.describe import settings_text

            try:
                say(f"\n{settings_text(namespace.config, namespace.set)}")
            except QilError as error:
                parser.exit(UNUSABLE, f"error: {error}\n")
        parser.exit()


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Parse the command line; exits with status 2 if it is invalid."""
    about = "Train one stage. A run that is there is continued. CONFIG --help lists the settings of a config."
    parser = Parser(prog=called("train"), description=about, add_help=False)
    config = "a Python file with a function config(), or a preset such as released/finetune"
    parser.add_argument("config", type=Path, help=config)
    parser.add_argument("-h", "--help", nargs=0, action=_Help, help="show this; behind CONFIG with all its settings")
    parser.add_argument(
        "--out", help="folder of the run, local or gs://BUCKET/...; default: runs/ and the config's own path"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="as optimiser.learning_rate=1e-4"
    )
    parser.add_argument("--distributed", metavar="WHERE", help=DISTRIBUTED_HELP)
    parser.add_argument("--wait", type=seconds, default=WAIT, metavar="SECONDS", help=WAIT_HELP)
    parser.add_argument("--profile", type=int, metavar="STEP", help="trace five steps into RUN/profile")
    parser.add_argument(
        "--check", action="store_true", help="prepare all, compile the step, say what it needs, and train nothing"
    )
    parser.add_argument(
        "--hang-timeout",
        type=seconds,
        default=HANG_TIMEOUT,
        metavar="SECONDS",
        help="end with status 75 and the stacks of all threads if nothing new was begun for so long; longer than any "
        "compilation, validation or export takes; default: %(default).0f, 0: never",
    )
    parser.add_argument("--wandb", metavar="PROJECT", help="send the metrics to Weights & Biases, too")
    values = vars(parser.parse_args(argv))
    values.pop("help")
    out = values.pop("out") or f"runs/{values['config'].with_suffix('').name}"
    try:
        if values["wandb"] is not None:
            require(called("train --wandb"), "wandb")
        folder = run_folder(out)
    except QilError as error:
        parser.exit(UNUSABLE, f"error: {error}\n")
    if is_remote(folder) and values["profile"] is not None:
        parser.error("--profile writes to a local disk: give --out a local folder for the profile")
    return Arguments(**{**values, "set": tuple(values["set"])}, out=folder, argv=tuple(argv))
