"""Decomposition of many pictures in batches, with atomic writing of results and skipping of finished ones.

Several processes that share a mesh compute each batch together, and each writes its share of the results.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qil_jax.choices import OutputSize
from qil_jax.errors import ProblemsError
from qil_jax.export.bounds import PIXEL_BYTES
from qil_jax.export.format import Format
from qil_jax.export.result import ResultError, read_result, recomposition_psnr, require_replaceable, write_result
from qil_jax.files import recover
from qil_jax.host_memory import require_memory
from qil_jax.inference.finish import finish
from qil_jax.inference.pictures import InputImage
from qil_jax.inference.request import Decomposer, Decomposition, OnStep, Request, ResolvedOptions, Settings
from qil_jax.layers.descriptions import described_prompt
from qil_jax.layers.layer_tree import LayerTree
from qil_jax.layers.profiles import SRGB, converted
from qil_jax.mesh import gathered
from qil_jax.programs import called


class JobError(ProblemsError):
    """Inputs or outputs of a run are unusable. The message lists all of them, and is raised before any compute."""

    def __init__(self, problems: list[str]):
        super().__init__("cannot start", problems)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedResult:
    """One requested decomposition.

    Attributes:
      picture: picture to decompose.
      sample: index among the samples of the picture.
      folder: folder to which the result is written.
      options: options of each picture's requests.
      made_from: what determines the result: file name and sha256 of the picture, checkpoint, LoRAs, settings, sample;
        and how the model wrote the prompt, if it did. The prompt is absent while it is not known.
    """

    picture: InputImage
    sample: int
    folder: Path
    options: ResolvedOptions
    made_from: Mapping[str, Any]

    @property
    def prompt(self) -> str:
        """The prompt of the options, or the picture's own prompt if the options have none, or else an empty one.

        Descriptions of single layers are added to it.
        """
        return described_prompt(_prompt(self.options, self.picture) or "", self.options.described)

    def request(self) -> Request:
        """The pipeline's request for this result."""
        return self.options.request(self.picture.image(), self.prompt, self.sample)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenResult:
    """A decomposition that was written to disk.

    Attributes:
      planned: requested result.
      batch_seconds: seconds that the result's whole batch took.
      psnr: PSNR between the recomposed layers and the input picture, in dB.
    """

    planned: PlannedResult
    batch_seconds: float
    psnr: float


def plan_results(
    pictures: Mapping[str, InputImage],
    out: Path,
    options: ResolvedOptions,
    *,
    checkpoint: Mapping[str, str],
    settings: Mapping[str, Any],
    loras: Sequence[Mapping[str, Any]] = (),
) -> list[PlannedResult]:
    """One result for each sample of each picture. Folders have the picture's name; later samples append a number.

    Results that cannot fit into the host's memory are refused.

    Args:
      pictures: mapping from the name of the result's folder to the picture.
      out: folder in which the results' folders are made.
      options: options of each picture's requests.
      checkpoint: name of the checkpoint's folder, and its fingerprint.
      settings: all other settings that determine a result, as JSON values.
      loras: name, sha256 and scale of each LoRA.

    Raises:
      QilError: with the figures of a result that does not fit.
    """
    planned, taken = [], {name.lower() for name in pictures}
    for name, picture in pictures.items():
        count = most_layers(options)
        what = f"{picture.path}: up to {count} layers of its {picture.size[0]}x{picture.size[1]} pixels"
        if options.output_size is OutputSize.INPUT:
            fix = "give --output-size model, or ask for fewer layers"
            require_memory(math.prod(picture.size) * count * PIXEL_BYTES, what, fix)
        prompt = _prompt(options, picture)
        is_caption = options.prompt is None and picture.caption is not None
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
                **({"loras": [dict(lora) for lora in loras]} if loras else {}),
                "settings": {**settings, **({} if prompt is None else {"prompt": prompt})},
                **({"caption": picture.caption} if is_caption else {}),
                "sample": sample,
            }
            planned.append(
                PlannedResult(picture=picture, sample=sample, folder=out / folder, options=options, made_from=made_from)
            )
    return planned


def most_layers(options: ResolvedOptions) -> int:
    """The most layers of a result: at each further level, each layer may become as many."""
    return options.layers**options.depth


def _prompt(options: ResolvedOptions, picture: InputImage) -> str | None:
    return picture.prompt if options.prompt is None else options.prompt


def results_left(planned: Sequence[PlannedResult], out: Path, *, overwrite: bool) -> list[PlannedResult]:
    """The results that are not finished. A finished result of the same picture, checkpoint and settings is kept.

    What killed programs left beside the results is removed. Folders change meanwhile, so process 0 decides for all;
    all processes must call this function.

    Raises:
      JobError: if `out` is not writable, or a result's folder already holds something else.
    """
    is_left = np.zeros(len(planned), np.int32)
    if jax.process_index() == 0:
        is_left[:] = _are_left(planned, out, overwrite)
    return [result for result, left in zip(planned, gathered(is_left)[0], strict=True) if left]


def _are_left(planned: Sequence[PlannedResult], out: Path, overwrite: bool) -> list[bool]:
    problems = []
    existing = next(p for p in (out, *out.parents) if os.path.lexists(p))
    if not existing.is_dir():
        problems.append(f"{existing}: is a file; give --out a folder")
    elif not os.access(existing, os.W_OK | os.X_OK):
        problems.append(f"{existing}: not writable; give another --out or change its permissions")
    if out.is_dir() and not problems:
        recover(out)
    left = []
    for result in planned if not problems else ():
        try:
            if overwrite:
                require_replaceable(result.folder)
            left.append(overwrite or not is_finished(result))
        except (ResultError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise JobError(problems)
    return left


def require_same_plan(planned: Sequence[PlannedResult], command: Mapping[str, Any]) -> None:
    """Check that all processes plan the same results by the same command; all must call this function.

    Raises:
      JobError: in every process, if one of them plans otherwise.
    """
    plan = [command, *([result.folder.name, result.made_from] for result in planned)]
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True, default=str).encode()).digest()
    plans = gathered(np.frombuffer(digest, np.uint8))
    unlike = [str(index) for index, found in enumerate(plans) if (found != plans[0]).any()]
    if unlike:
        raise JobError(
            [
                f"process {', '.join(unlike)} of {len(plans)} would make other results than process 0: give all the "
                "same command, and let all see the same pictures and the same checkpoint"
            ]
        )


def is_finished(planned: PlannedResult) -> bool:
    """Whether the result's folder exists and holds this result; False if there is no such folder.

    Raises:
      ResultError: if the folder holds another result; the message names every difference.
    """
    record = read_result(planned.folder)
    if record is None:
        return False
    there, here = _identity(record), _identity(planned.made_from)
    differing = [
        f"{name} {there.get(name)!r}, now {here.get(name)!r}"
        for name in {**there, **here}
        if here.get(name) != there.get(name)
    ]
    if differing:
        made = "; ".join(differing)
        raise ResultError(f"{planned.folder}: was made with {made}; give --overwrite to replace it, or another --out")
    missing = [x.file for x in planned.options.exports if x is not Format.PNG and x.file not in record["files"]]
    if missing:
        raise ResultError(
            f"{planned.folder}: has no {', '.join(missing)}; {called('export')} makes them from its layers"
        )
    return True


def run_job(
    planned: Sequence[PlannedResult],
    decomposer: Decomposer,
    settings: Settings,
    *,
    batch: int,
    overwrite: bool,
    on_step: OnStep | None = None,
) -> Iterator[WrittenResult]:
    """Decompose in batches and write the results of each batch as soon as it is finished.

    All processes must call this function with equal arguments. Each result is written by one of them and yielded by
    all, after it was written. All results have equal options.
    """
    processes, this = jax.process_count(), jax.process_index()
    for start in range(0, len(planned), batch):
        group = planned[start : start + batch]
        made = decomposer.decompose([result.request() for result in group], settings, on_step=on_step)
        made = [_in_own_colours(result, decomposition) for result, decomposition in zip(group, made, strict=True)]
        pictures = [_picture(result, decomposition) for result, decomposition in zip(group, made, strict=True)]
        finished = finish(made, pictures, group[0].options, decomposer, settings, batch=batch)
        psnr = np.full(len(group), -np.inf, np.float32)
        for i, result in enumerate(group):
            if (start + i) % processes == this:
                details = {**_details(result, made[i], len(group)), **finished[i].report}
                psnr[i] = _write(result, finished[i].tree, finished[i].picture, details, overwrite)
        for result, decomposition, decibels in zip(group, made, gathered(psnr).max(0), strict=True):
            seconds = sum(decomposition.timings.values())
            yield WrittenResult(planned=result, batch_seconds=seconds, psnr=float(decibels))


def _picture(planned: PlannedResult, made: Decomposition) -> np.ndarray:
    """The picture at the size and with the colours with which its layers are written."""
    return np.asarray(planned.picture.own().image) if planned.options.output_size is OutputSize.INPUT else made.input


def _in_own_colours(planned: PlannedResult, made: Decomposition) -> Decomposition:
    """A decomposition with the colours of the picture if it gets its size, and with what was noted of reading it."""
    own = planned.picture.profile if planned.options.output_size is OutputSize.INPUT else SRGB
    layered = dataclasses.replace(made.layered, decisions=(*planned.picture.notes, *made.layered.decisions))
    return dataclasses.replace(made, layered=layered.with_profile(own), input=converted(made.input, SRGB, own))


def _details(planned: PlannedResult, made: Decomposition, together: int) -> dict[str, Any]:
    """What a result records of its making."""
    return {
        **planned.made_from,
        "model_size": [made.input.shape[1], made.input.shape[0]],
        "batch_seconds": {phase: round(seconds, 4) for phase, seconds in made.timings.items()},
        "batch_size": together,
    }


def _write(
    planned: PlannedResult, tree: LayerTree, original: np.ndarray, details: Mapping[str, Any], overwrite: bool
) -> float:
    """Write a result; the PSNR of its recomposition in dB."""
    try:
        options = planned.options
        return write_result(
            planned.folder,
            tree,
            original,
            details,
            exports=options.exports,
            hidden_masks=options.hidden_masks,
            overwrite=overwrite,
        )
    except FileExistsError:
        if not is_finished(planned):  # another program may have made the same result meanwhile
            raise
        return recomposition_psnr(tree.leaves(), original)


def _identity(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that must agree for two results to be equal: content and settings, but no file or folder names."""
    checkpoint, settings = made_from.get("checkpoint"), made_from.get("settings")
    return {
        "a picture of sha256": made_from.get("input_sha256"),
        "a checkpoint of fingerprint": checkpoint.get("fingerprint") if isinstance(checkpoint, Mapping) else None,
        "LoRAs of sha256 and scale": _lora_identity(made_from.get("loras", [])),
        **(settings if isinstance(settings, Mapping) else {}),
        "sample": made_from.get("sample"),
    }


def _lora_identity(loras: Any) -> list[Any]:
    """The content and the scale of each LoRA that a result records; a result without LoRAs records none."""
    entries = loras if isinstance(loras, list) else [loras]
    return [[entry.get("sha256"), entry.get("scale")] if isinstance(entry, Mapping) else entry for entry in entries]
