"""The command line of `qil decompose`: arguments, checked before JAX is imported, progress display, and summary."""

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from annotated_types import Ge
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from qil_jax.choices import (
    AUTO,
    MAX_LAYERS,
    AttentionKind,
    OutputSize,
    Passes,
    Precision,
    Residency,
    Spread,
    Weights,
)
from qil_jax.command_line import Parser, add_options, flag, integer, one_of, seconds
from qil_jax.errors import QilError, cut, message, printable, say
from qil_jax.export.format import Format
from qil_jax.files import no_folder
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.describe import read_descriptions
from qil_jax.inference.request import JobOptions, ResolvedOptions, ResolvedSettings, Settings
from qil_jax.launch import DISTRIBUTED_HELP, WAIT, WAIT_HELP
from qil_jax.layers.descriptions import LayerDescription
from qil_jax.options import options_of, value_problems
from qil_jax.programs import called
from qil_jax.shipped import shipped_checkpoint
from qil_jax.terminal import Table, console

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from qil_jax.inference.checkpoint import LayeredCheckpoint
    from qil_jax.inference.job import PlannedResult, WrittenResult

OnCount = Callable[[int, int], None]
OF_PICTURES = ("layers", "max_layers", "prompt", "caption_language", "negative_prompt")
OF_PICTURES += ("resolution", "output_size", "edges", "seed", "samples", "exact", "depth", "split", "hidden_masks")
OF_BATCHES = ("steps", "guidance", "rescale", "max_prompt_tokens")
SHOWN = 10
"""Maximum number of pictures whose sizes are printed individually."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of the command line, with the checkpoint's defaults for those that are absent.

    Attributes:
      inputs: pictures, and folders of pictures.
      checkpoint: folder of the checkpoint.
      out: folder in which each result gets a folder; None: captions alone are asked for, to be put beside pictures.
      options: options of each picture's requests.
      settings: sampler settings shared by all pictures.
      batch: number of decompositions per batch.
      dtype: dtype of parameters and activations; None: the stored dtype.
      loras: LoRA files, each with the scale of its changes.
      mesh: mesh axes and their sizes, such as data=2,tensor=4; empty: the first device.
      skip_bad: whether unreadable pictures are skipped instead of ending the run.
      overwrite: whether existing results are replaced.
      weights: what the devices along the mesh's axis context hold of the kernels.
      attention: the transformer's attention; None: by the devices.
      spread: how queries meet keys along context; None: by the number of heads.
      passes: the way in which the two passes of guidance are computed.
      distributed: specification of the other processes (see `launch.connected`); None: a single process.
      wait: number of seconds within which all processes must have joined.
      compile_only: whether programs are compiled and kept, and nothing is decomposed.
      caption_only: whether captions are written to text files, and nothing is decomposed.
    """

    inputs: list[Path]
    checkpoint: Path
    out: Path | None
    options: ResolvedOptions
    settings: ResolvedSettings
    batch: int
    dtype: Precision | None
    loras: list[tuple[Path, float]]
    mesh: str
    skip_bad: bool
    overwrite: bool
    weights: Weights
    attention: AttentionKind | None
    spread: Spread | None
    passes: Passes
    compile_only: bool
    caption_only: bool
    distributed: str | None
    wait: float

    @property
    def command(self) -> dict[str, Any]:
        """What all processes of a run must agree on beside the results."""
        same = ("batch", "mesh", "weights", "attention", "spread", "overwrite", "passes")
        same += ("compile_only", "caption_only")
        return {**{name: str(getattr(self, name)) for name in same}, "export": ",".join(self.options.exports)}

    def problems(self) -> list[str]:
        """One message for each invalid argument."""
        found = [*self.options.problems(flag), *self.settings.problems(flag)]
        found += value_problems("--batch", self.batch, Annotated[int, Ge(1)])
        found += [f"--lora {file}: no such file" for file, _ in self.loras if not file.is_file()]
        found += [
            f"--lora {file}: the scale must be a finite number, got {scale}"
            for file, scale in self.loras
            if not math.isfinite(scale)
        ]
        if self.out is None and not self.caption_only:
            found.append("--out is needed: the folder for the results")
        if self.caption_only and (self.options.prompt is not None or self.compile_only):
            found.append("--caption-only goes with neither --prompt nor --compile-only: leave one of them out")
        return found + ([] if self.checkpoint.is_dir() else [f"--checkpoint {no_folder(self.checkpoint)}"])

    def require_memory(
        self, left: "Sequence[PlannedResult]", checkpoint: "LayeredCheckpoint", mesh: "Mesh", *, captioned: int = 0
    ) -> None:
        """Refuse a batch that does not fit into memory, before the checkpoint is loaded to caption or decompose.

        Raises:
          QilError: if the batch does not fit; the message gives the required and the available memory.
        """
        from qil_jax.inference.memory import Drawing, plan_memory, require_memory

        resolution, layers = self.options.resolution, self.options.layers
        drawings = [Drawing.of(result.picture.size, resolution=resolution, layers=layers) for result in left]
        largest = sorted(drawings, key=lambda drawing: math.prod(drawing.size))[-self.batch :]
        plan = plan_memory(
            largest, self.settings, checkpoint, residency=Residency.PHASES, passes=self.passes, captioned=captioned
        )
        require_memory(plan, mesh)


@dataclasses.dataclass(kw_only=True)
class Ledger:
    """Planned, finished and skipped results of a run, also available after an interruption.

    Attributes:
      planned: all requested results.
      left: planned results that no earlier run had finished.
      done: results that this run has written so far.
      skipped: a line for each skipped picture, with the reason.
      captions: number of captions that this run has written so far.
    """

    planned: "list[PlannedResult]" = dataclasses.field(default_factory=list)
    left: "list[PlannedResult]" = dataclasses.field(default_factory=list)
    done: "list[WrittenResult]" = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)
    captions: int = 0

    def summary(self) -> str:
        """A line with the numbers of finished and of planned results, and of written captions if there are any."""
        finished = len(self.planned) - len(self.left) + len(self.done)
        captions = f", {self.captions} captions are written" if self.captions else ""
        return f"{finished} of {len(self.planned)} results are finished{captions}"

    def announce(self, resolution: int) -> None:
        """Print the size at which the model sees each picture, and whether any picture has an empty prompt."""
        from qil_jax.inference.images import bucket_size

        pictures = {result.picture.path: result.picture for result in self.left}
        for path, picture in list(pictures.items())[:SHOWN]:
            width, height = bucket_size(*picture.size, resolution)
            own = "x".join(map(str, picture.size))
            say(f"{printable(path.name)}: {own} pixels, the model sees {width}x{height}")
        if len(pictures) > SHOWN:
            say(f"and {len(pictures) - SHOWN} more pictures")
        larger = [size for size in (picture.size for picture in pictures.values()) if max(size) > 1.25 * resolution]
        if larger and self.left[0].options.output_size is OutputSize.MODEL:
            say("Layers have the model's size; --output-size input gives them the picture's, with its edges.")
        if any(not result.prompt for result in self.left):
            say("No --prompt given, and this checkpoint cannot caption: an empty prompt is used.")


def parse_arguments(argv: list[str]) -> Arguments:
    """Parse the command line; if an argument is invalid, print every problem and exit with status 2."""
    parser = _parser()
    values = vars(parser.parse_args(argv))
    checkpoint = shipped_checkpoint() if values["checkpoint"] is None else values["checkpoint"]
    describe, exports = values.pop("describe"), values.pop("export")
    try:
        defaults = Defaults.of(checkpoint)
        described = () if describe is None else read_descriptions(describe)
    except (QilError, OSError) as error:
        parser.error(str(error))
    said = {name: values.pop(name) for name in (*OF_PICTURES, *OF_BATCHES)}
    said |= _count(said, described, defaults)
    arguments = Arguments(
        **{**values, "checkpoint": checkpoint},
        options=dataclasses.replace(_said(JobOptions, said).filled(defaults), described=described, exports=exports),
        settings=_said(Settings, said).filled(defaults),
    )
    problems = arguments.problems()
    if problems:
        parser.error("\n  ".join(["cannot start:", *problems]))
    if defaults.about:
        say(defaults.about)
    return arguments


def _count(said: Mapping[str, Any], described: Sequence[LayerDescription], defaults: Defaults) -> dict[str, Any]:
    """The number of layers to ask for, and whether superfluous ones are taken out."""
    if said["layers"] == AUTO:
        return {"auto": True, "layers": said["max_layers"] or defaults.auto_layers}
    return {"layers": len(described)} if described and said["layers"] is None else {}


Asked = TypeVar("Asked", JobOptions, Settings)


def _said(cls: type[Asked], said: Mapping[str, Any]) -> Asked:
    """An instance of `cls` with the values given on the command line."""
    return cls(**{name: said[name] for name in options_of(cls) if said.get(name) is not None})


def _parser() -> Parser:
    parser = Parser(prog=called("decompose"), description="Decompose pictures into editable RGBA layers.")
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="PICTURE_OR_FOLDER", help="pictures, and folders of pictures")
    add("--checkpoint", type=Path, help="folder of the released layout, or converted to orbax (default: a small model)")
    add("--out", type=Path, help="a folder for each picture is made in here")
    add(
        "--layers",
        type=_layers,
        metavar="N",
        help=f"layers to make, 1 to {MAX_LAYERS}; auto: make --max-layers (by "
        "default twice as many as usual) and take out empty ones and copies (default: what the checkpoint says)",
    )
    add_options(add, JobOptions, OF_PICTURES[1:])
    add("--describe", type=Path, metavar="FILE", help="JSON of what single layers show, and where (docs/layers.md)")
    files = f"files beside the PNGs, such as psd,ora: any of {', '.join(Format)} (default psd)"
    add("--export", type=_formats, default=(Format.PSD,), metavar="FORMATS", help=files)
    add_options(add, Settings, OF_BATCHES)
    add("--batch", type=int, default=1, help="decompositions at once (default 1)")
    add("--dtype", **one_of(Precision), help="compute precision (default: as stored)")
    add(
        "--lora",
        dest="loras",
        action="append",
        type=scaled_file,
        default=[],
        metavar="FILE[:SCALE]",
        help="a LoRA to add to the transformer, and how much of it (default 1); may be given several times",
    )
    add("--mesh", default="", help='devices, such as "data=2,tensor=4" (default: the first device)')
    kernels = "kernels along the mesh's axis context: a part on each device, or whole where there is room"
    add("--weights", **one_of(Weights), default=Weights.SPLIT, help=f"{kernels} (default split)")
    add("--attention", **one_of(AttentionKind), help="implementation (default: splash on TPUs, xla_chunked elsewhere)")
    add("--spread", **one_of(Spread), help="keys along context (default: ulysses if the heads divide, else gather)")
    add("--skip-bad", action="store_true", help="go on without pictures that cannot be read; exit status 3 if any")
    add("--overwrite", action="store_true", help="replace results that are there")
    add(
        "--passes",
        **one_of(Passes),
        default=Passes.BATCH,
        help="guidance's two passes: at once, or one after the other with half the activations (default batch)",
    )
    add("--compile-only", action="store_true", help="compile what these pictures need, keep it, and end")
    add("--caption-only", action="store_true", help="caption pictures into NAME.txt beside them or in --out, and end")
    add("--distributed", metavar="WHERE", help=DISTRIBUTED_HELP)
    add("--wait", type=seconds, default=WAIT, metavar="SECONDS", help=WAIT_HELP)
    return parser


def _layers(text: str) -> int | str:
    """A number of layers, or `auto`."""
    if text != AUTO and not text.removeprefix("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{cut(text)!r} is neither a number nor {AUTO}")
    return AUTO if text == AUTO else integer(text)


def _formats(text: str) -> tuple[Format, ...]:
    """Formats separated by commas."""
    unknown = [name for name in text.split(",") if name not in set(Format)]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no format; there are {', '.join(Format)}")
    return tuple(Format(name) for name in text.split(","))


def scaled_file(text: str) -> tuple[Path, float]:
    """The file and the scale of FILE[:SCALE]; only a number after the last colon is a scale."""
    file, colon, scale = text.rpartition(":")
    if colon and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", scale, re.ASCII):
        return Path(file), float(scale)
    return Path(text), 1.0


@contextmanager
def show_pictures() -> Iterator[OnCount]:
    """Show a progress bar on a terminal while pictures are read. Yields the callback for pictures."""
    columns = (TextColumn("reading pictures"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, disable=not sys.stdout.isatty(), transient=True) as progress:
        bar = progress.add_task("", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


@contextmanager
def show_loading() -> Iterator[OnCount]:
    """Show a progress bar on a terminal, otherwise a line for each component. Yields the callback for bytes."""
    columns = (TextColumn("loading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    terminal = sys.stdout.isatty()
    with Progress(*columns, disable=not terminal, transient=True) as progress:
        bar = progress.add_task("", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)
            if done == total and not terminal:
                say(f"loaded {total / 1e6:,.1f} MB")

        yield advance


@contextmanager
def show_compilation() -> Iterator[OnCount]:
    """Show a progress bar on a terminal, otherwise a line for each program. Yields the callback for programs."""
    columns = (TextColumn("compiling programs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    terminal = sys.stdout.isatty()
    with Progress(*columns, disable=not terminal) as progress:
        bar = progress.add_task("", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)
            if not terminal:
                say(f"compiled {done}/{total}")

        yield advance


@contextmanager
def show_captions(pictures: int, ledger: Ledger) -> Iterator[Callable[[str, str], None]]:
    """Show a progress bar on a terminal while captions are written. Yields the callback that prints and counts them."""
    columns = (TextColumn("captioning"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=not sys.stdout.isatty(), transient=True) as progress:
        bar = progress.add_task("", total=pictures)

        def show(name: str, caption: str) -> None:
            ledger.captions += 1
            progress.update(bar, advance=1)
            progress.console.print(
                message(f"caption of {name}: {caption}"), markup=False, highlight=False, soft_wrap=True
            )

        yield show


@contextmanager
def show_progress(results: int, batch: int) -> Iterator[OnCount]:
    """Show a progress bar on a terminal, otherwise a line per tenth of a batch. Yields the callback for steps."""
    batches = -(-results // batch)
    done = 0

    if not sys.stdout.isatty():
        say(f"compiling batch 1/{batches}")

        def line(step: int, steps: int) -> None:
            nonlocal done
            if step == steps or step % max(1, steps // 10) == 0:
                say(f"batch {done + 1}/{batches}: step {step}/{steps}")
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
    """Print the results written by this run, those finished by earlier runs, and the skipped pictures."""
    by_folder = {written.planned.folder: written for written in ledger.done}
    table = Table("picture", "status", "batch's seconds", "PSNR dB", "folder")
    for result in ledger.planned:
        name, folder, written = result.picture.path.name, str(result.folder), by_folder.get(result.folder)
        if written is None:
            table.add_row(name, "already finished", "", "", folder)
        else:
            table.add_row(name, "done", f"{written.batch_seconds:.1f}", f"{written.psnr:.2f}", folder)
    console().print(table)
    for reason in ledger.skipped:
        say(f"skipped: {reason}")
