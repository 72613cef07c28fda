"""A run over pictures and folders: what is left to do, in batches, each result written once and whole."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from qil_jax.export.names import safe_name
from qil_jax.export.result import read_record, write_result
from qil_jax.inference.images import RESOLUTION, SUFFIXES, ImageError, open_image
from qil_jax.inference.request import Decomposition, Request, Settings

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


class JobError(ValueError):
    """Inputs or outputs of a run that do not work, all of them listed, before any compute."""

    def __init__(self, problems: list[str]):
        self.problems = tuple(problems)
        super().__init__("cannot start:\n  " + "\n  ".join(problems))


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What the command line says about every picture."""

    layers: int = 4
    prompt: str = ""
    negative_prompt: str | None = " "
    resolution: int = RESOLUTION
    seed: int = 777
    samples: int = 1
    max_layers: int = 20

    def request(self, path: Path) -> Request:
        """The request for one file."""
        image = open_image(path, resolution=self.resolution)
        return Request(image=image, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One input picture and the folder for its result."""

    source: Path
    folder: Path

    def folders(self, samples: int) -> list[Path]:
        """The result folder of each sample: the task's own, or numbered ones inside it."""
        if samples == 1:
            return [self.folder]
        return [self.folder / f"sample_{i:02d}" for i in range(1, samples + 1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one task."""

    task: Task
    status: str  # "done" or "found" (finished by an earlier run)
    seconds: float = 0.0
    psnr: float | None = None


def find_tasks(inputs: Sequence[Path], out: Path, *, resolution: int = RESOLUTION) -> list[Task]:
    """Every picture of the given files and folders (sorted, not recursive), with a result folder of its own.

    Raises:
      JobError: on inputs that do not exist, folders without pictures, or pictures that cannot be decomposed.
    """
    problems, sources = [], []
    for path in inputs:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
            problems += [] if found else [f"{path}: holds no pictures ({', '.join(SUFFIXES)})"]
            sources += found
        elif path.is_file():
            sources.append(path)
        else:
            problems.append(f"{path}: no such file or folder")
    for source in sources:
        try:
            open_image(source, resolution=resolution)
        except ImageError as error:
            problems.append(str(error))
    if problems:
        raise JobError(problems)
    tasks, taken = [], set()
    for source in dict.fromkeys(p.resolve() for p in sources):
        name = stem = safe_name(source.stem, "picture")
        number = 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.lower())
        tasks.append(Task(source=source, folder=out / name))
    return tasks


def check_output(out: Path, tasks: Sequence[Task], settings: dict[str, Any], *, overwrite: bool) -> list[Task]:
    """The tasks still to be done.

    A finished result made with the same settings from the same picture is kept and skipped.

    Raises:
      JobError: if `out` cannot be written, or holds something else where a result should go.
    """
    problems = []
    existing = next(p for p in (out, *out.parents) if p.exists())
    if not existing.is_dir():
        problems.append(f"{existing}: is a file; give --out a folder")
    elif not os.access(existing, os.W_OK | os.X_OK):
        problems.append(f"{existing}: not writable; give another --out or change its permissions")
    left = []
    for task in tasks:
        folders = task.folders(settings.get("samples", 1))
        missing = [folder for folder in folders if overwrite or not folder.exists()]
        left += [task] if missing else []
        for folder in (f for f in folders if f not in missing):
            record = read_record(folder)
            if record is None:
                problems.append(f"{folder}: exists and is no finished result; move it, or give --overwrite")
            elif record.get("settings") != settings or record.get("input") != task.source.name:
                problems.append(f"{folder}: made with other settings or from another file; give --overwrite or --out")
    if problems:
        raise JobError(problems)
    return left


def run_job(
    tasks: Sequence[Task],
    decomposer: Decomposer,
    options: JobOptions,
    settings: Settings,
    *,
    record: dict[str, Any],
    batch: int,
    overwrite: bool,
    on_step: OnStep | None = None,
) -> list[Outcome]:
    """Decompose the tasks in batches and write each result as soon as its batch is through."""
    outcomes = []
    for start in range(0, len(tasks), batch):
        group = tasks[start : start + batch]
        results = decomposer.decompose([options.request(t.source) for t in group], settings, on_step=on_step)
        for i, task in enumerate(group):
            samples = results[i * options.samples : (i + 1) * options.samples]
            outcomes.append(_write(task, samples, record, len(group), overwrite))
    return outcomes


def _write(task: Task, samples: Sequence[Decomposition], record: dict, together: int, overwrite: bool) -> Outcome:
    psnr = None
    for folder, sample in zip(task.folders(len(samples)), samples, strict=True):
        if folder.exists() and not overwrite:
            continue  # finished before an interruption, and checked to be the same
        seconds = {k: round(v, 4) for k, v in sample.timings.items()}
        details = {
            "input": task.source.name,
            **record,
            "sample": sample.sample,
            "batch_seconds": seconds,
            "batch_size": together,
        }
        psnr = write_result(folder, sample.layered, sample.input, details, overwrite=overwrite)
    return Outcome(task=task, status="done", seconds=sum(samples[0].timings.values()), psnr=psnr)
