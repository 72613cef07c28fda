"""A run over pictures: what is left to do, in batches, each result written once and whole."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from qil_jax.errors import ProblemsError
from qil_jax.export.result import ResultError, read_result, recomposition_psnr, require_replaceable, write_result
from qil_jax.inference.images import RESOLUTION, resize_layers
from qil_jax.inference.pictures import Picture
from qil_jax.inference.request import Decomposition, Request, Settings
from qil_jax.layers.layered_image import LayeredImage

OnStep = Callable[[int, int], None]


@runtime_checkable
class Decomposer(Protocol):
    """What a job needs of a pipeline."""

    def decompose(
        self,
        requests: Sequence[Request],
        settings: Settings = ...,
        *,
        on_step: OnStep | None = None,
    ) -> list[Decomposition]:
        """Decompose a batch."""
        ...


class JobError(ProblemsError):
    """Inputs or outputs of a run that do not work, all of them listed, before any compute."""

    def __init__(self, problems: list[str]):
        super().__init__("cannot start", problems)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What the command line says about every picture.

    Attributes:
      prompt: None: what the text file beside a picture says, or nothing.
      samples: decompositions of each picture.
      own_size: write layers at the picture's own size instead of the model's.
    """

    layers: int = 4
    prompt: str | None = None
    negative_prompt: str | None = " "
    resolution: int = RESOLUTION
    seed: int = 777
    samples: int = 1
    max_layers: int = 20
    own_size: bool = False

    def prompt_of(self, picture: Picture) -> str:
        """The prompt of one picture."""
        return self.prompt if self.prompt is not None else picture.prompt or ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One decomposition to be made: a picture, which of its samples, the folder for it, and what decides it."""

    picture: Picture
    sample: int
    folder: Path
    options: JobOptions
    made_from: Mapping[str, Any]
    """The picture's file name and sha256, the checkpoint, the settings, the sample: equal ones give equal results."""

    def request(self) -> Request:
        """What to ask of the pipeline."""
        return Request(
            image=self.picture.image(),
            layers=self.options.layers,
            prompt=self.options.prompt_of(self.picture),
            negative_prompt=self.options.negative_prompt,
            resolution=self.options.resolution,
            seed=self.options.seed,
            first_sample=self.sample,
            max_layers=self.options.max_layers,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one task.

    Attributes:
      batch_seconds: of the batch that it was made in.
      psnr: of its layers put together, in dB.
    """

    task: Task
    batch_seconds: float
    psnr: float


def plan_tasks(
    pictures: Mapping[str, Picture],
    out: Path,
    options: JobOptions,
    *,
    checkpoint: Mapping[str, str],
    settings: Mapping[str, Any],
) -> list[Task]:
    """A task for every sample of every picture. The first sample's folder has the picture's name, the others a number.

    Args:
      pictures: by the name of their folder.
      out: where the folders go.
      options: what holds for every picture.
      checkpoint: what identifies it: its folder's name and its digest.
      settings: all others that decide a result, as JSON values.
    """
    tasks, taken = [], {name.lower() for name in pictures}
    for name, picture in pictures.items():
        for sample in range(options.samples):
            folder, number = name, 0
            while sample and (number == 0 or folder.lower() in taken):
                number += 1
                folder = f"{name}_sample_{sample + 1}" + (f"_{number}" if number > 1 else "")
            taken.add(folder.lower())
            made_from = {
                "input": picture.path.name,
                "input_sha256": picture.sha256,
                "checkpoint": dict(checkpoint),
                "settings": {**settings, "prompt": options.prompt_of(picture)},
                "sample": sample,
            }
            tasks.append(
                Task(picture=picture, sample=sample, folder=out / folder, options=options, made_from=made_from)
            )
    return tasks


def tasks_left(tasks: Sequence[Task], out: Path, *, overwrite: bool) -> list[Task]:
    """The tasks still to be done. A finished result of the same picture, checkpoint and settings is kept.

    Raises:
      JobError: if `out` cannot be written, or holds something else where a result should go.
    """
    problems = []
    existing = next(p for p in (out, *out.parents) if os.path.lexists(p))
    if not existing.is_dir():
        problems.append(f"{existing}: is a file; give --out a folder")
    elif not os.access(existing, os.W_OK | os.X_OK):
        problems.append(f"{existing}: not writable; give another --out or change its permissions")
    left = []
    for task in tasks if not problems else ():
        try:
            if overwrite:
                require_replaceable(task.folder)
                left.append(task)
            elif not is_finished(task):
                left.append(task)
        except (ResultError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise JobError(problems)
    return left


def is_finished(task: Task) -> bool:
    """Whether the task's result is there, whole; False where nothing is.

    Raises:
      ResultError: if something else is there, naming all that differs.
    """
    record = read_result(task.folder)
    if record is None:
        return False
    there, here = _facts(record), _facts(task.made_from)
    differing = [
        f"{name} {there.get(name)!r}, now {here.get(name)!r}" for name in here if here[name] != there.get(name)
    ]
    if differing:
        made = "; ".join(differing)
        raise ResultError(f"{task.folder}: was made with {made}; give --overwrite to replace it, or another --out")
    return True


def run_job(
    tasks: Sequence[Task],
    decomposer: Decomposer,
    settings: Settings,
    *,
    batch: int,
    overwrite: bool,
    on_step: OnStep | None = None,
) -> Iterator[Outcome]:
    """Decompose the tasks in batches and write each result as soon as its batch is through."""
    for start in range(0, len(tasks), batch):
        group = tasks[start : start + batch]
        results = decomposer.decompose([task.request() for task in group], settings, on_step=on_step)
        for task, result in zip(group, results, strict=True):
            yield _write(task, result, len(group), overwrite)


def _write(task: Task, made: Decomposition, together: int, overwrite: bool) -> Outcome:
    layered, original = made.layered, made.input
    if task.options.own_size:
        original = np.asarray(task.picture.image())
        layers = resize_layers(layered.layers, task.picture.size)
        layered = LayeredImage(layers=layers, names=layered.names, caption=layered.caption)
    details = {
        **task.made_from,
        "model_size": [made.input.shape[1], made.input.shape[0]],
        "batch_seconds": {phase: round(seconds, 4) for phase, seconds in made.timings.items()},
        "batch_size": together,
    }
    try:
        psnr = write_result(task.folder, layered, original, details, overwrite=overwrite)
    except FileExistsError:
        if not is_finished(task):  # another program may have made the same result meanwhile
            raise
        psnr = recomposition_psnr(layered, original)
    return Outcome(task=task, batch_seconds=sum(made.timings.values()), psnr=psnr)


def _facts(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal for results to be equal. Names of files and folders do not matter, their content does."""
    checkpoint, settings = made_from.get("checkpoint"), made_from.get("settings")
    return {
        "a picture of sha256": made_from.get("input_sha256"),
        "a checkpoint of digest": checkpoint.get("digest") if isinstance(checkpoint, Mapping) else None,
        **(settings if isinstance(settings, Mapping) else {}),
        "sample": made_from.get("sample"),
    }
