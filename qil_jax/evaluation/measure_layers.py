"""`qil evaluate layers`: decompose the remaining records, then score folders of layers."""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qil_jax.errors import ProblemsError, QilError
from qil_jax.evaluation.job import claim
from qil_jax.evaluation.report import write_layer_report
from qil_jax.evaluation.samples import LayerResult, TrueSample, sample_rows, scored, true_sample
from qil_jax.export.manifest import RECORD, listed_files
from qil_jax.export.result import read_record
from qil_jax.files import opened, read_file
from qil_jax.inference.checkpoint import LayeredCheckpoint
from qil_jax.inference.images import bucket_size, check_size
from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import MAX_LAYERS, Request, Settings
from qil_jax.layers.compositing import composite_8bit
from qil_jax.layers.layered_image import pngs_in
from qil_jax.layers.pictures import decoded
from qil_jax.mesh import INFERENCE_RULES, MeshShape, Sharding, make_mesh, single_device_mesh
from qil_jax.progress import shown
from qil_jax.records.record import Record
from qil_jax.records.sources import RecordMetadata, RecordSource, open_source, read
from qil_jax.weights.identity import PARTS

SAMPLES = "samples"
NO_PROMPT = " "
"""The negative prompt, and the prompt that training puts in place of a dropped caption."""
TITLE = "Decomposition, by the LayerD protocol"


class Prompts(StrEnum):
    """The prompt of a decomposition."""

    NONE = "none"
    CAPTIONS = "captions"  # the record's caption, or no prompt if it has none


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Subset:
    """The first records of a split that have two layers or more, which the protocol needs.

    Attributes:
      count: number of leading records considered, those of fewer layers included.
      resolution: resolution of the bucket at which the model decomposes the records, in pixels.
    """

    source: RecordSource
    metadata: RecordMetadata
    split: str
    count: int
    resolution: int

    @classmethod
    def open(cls, records: str, split: str, *, count: int, resolution: int) -> "Subset":
        """The subset of a dataset, or of folders of PNGs.

        Raises:
          QilError: if there are no such records.
          ProblemsError: listing those that cannot be decomposed.
        """
        source = open_source(records, split)
        subset = cls(
            source=source, metadata=source.metadata(), split=split, count=min(count, len(source)), resolution=resolution
        )
        if not subset.numbers:
            raise QilError(f"{records}: none of the first {subset.count} records has the two layers that are needed")
        problems = []
        for number in subset.numbers:
            try:
                check_size(subset.size(number), source.name(number), resolution)
            except QilError as error:
                problems.append(str(error))
        if problems:
            raise ProblemsError("records that cannot be decomposed", problems)
        return subset

    @property
    def numbers(self) -> list[int]:
        """Numbers of the records."""
        return np.flatnonzero(self.metadata.layers[: self.count] >= 2).tolist()

    def size(self, number: int) -> tuple[int, int]:
        """Width and height of a record as it is stored."""
        width, height = self.metadata.sizes[number].tolist()
        return width, height

    def bucket(self, number: int) -> tuple[int, int]:
        """Width and height at which the model decomposes a record."""
        return bucket_size(*self.size(number), self.resolution)

    def record(self, number: int) -> Record:
        """The record of a number. Raises RecordError if it cannot be read."""
        return read(self.source, number)

    def identity(self) -> dict[str, Any]:
        """All settings that determine the result, as JSON values.

        Records are identified by all sizes, layer counts and lengths of captions, and by the pixels of the first one.
        """
        first = self.record(self.numbers[0])
        digest = hashlib.sha256(self.metadata.rows.tobytes() + composite_8bit(first.layers, first.size).tobytes())
        settings = {"split": self.split, "count": self.count, "resolution": self.resolution}
        return {"verb": "layers", "records": digest.hexdigest()[:16], **settings}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the sampler with which a checkpoint decomposes.

    Attributes:
      checkpoint: folder of the checkpoint.
      layers: number of layers to generate; None takes the true number.
      prompts: prompts of the decompositions: none, or the records' captions.
      steps: number of Euler steps of the sampler.
      guidance: guidance scale; 1 means no guidance.
      seed: random seed of the noise, to which each record's number is added.
      batch: number of pictures decomposed together.
      dtype: compute precision; None takes the precision of the stored weights.
      mesh: sizes of mesh axes, such as "data=2"; empty means the first device only.
    """

    checkpoint: Path
    layers: int | None
    prompts: Prompts
    steps: int
    guidance: float
    seed: int
    batch: int
    dtype: str | None
    mesh: str

    def identity(self) -> dict[str, Any]:
        """All settings that determine the result up to rounding, as JSON values; batch and mesh do not."""
        layers = "true" if self.layers is None else self.layers
        names = ("prompts", "steps", "guidance", "seed", "dtype")
        return {"layers": layers, **{name: getattr(self, name) for name in names}}

    def load(self, checkpoint: LayeredCheckpoint) -> Pipeline:
        """Load the opened checkpoint onto the mesh."""
        mesh = make_mesh(MeshShape.parse(self.mesh)) if self.mesh else single_device_mesh()
        return Pipeline.of(checkpoint, sharding=Sharding(mesh, INFERENCE_RULES))


def score_sampled(subset: Subset, sampling: Sampling, out: Path) -> str:
    """Decompose the records that OUT/samples does not hold yet, and write the report of all records to OUT.

    Raises:
      QilError: before any compute, if the checkpoint is not sound or OUT holds something else.
    """
    checkpoint = LayeredCheckpoint.open(sampling.checkpoint, dtype=sampling.dtype)
    fingerprints = {part: checkpoint.fingerprint(part) for part in PARTS}
    claim(out, {**subset.identity(), **sampling.identity(), **fingerprints})
    left = [group for group in batches(subset, sampling.batch) if any(not _folder(out, n).exists() for n in group)]
    if left:
        made = decomposed(left, subset, sampling, checkpoint, out)
        for _ in shown(made, sum(map(len, left)), "decomposing"):
            pass
    settings = {"checkpoint": sampling.checkpoint.resolve().name, **sampling.identity()}
    settings["layers"] = sampling.layers or f"as many as the truth has, at most {MAX_LAYERS}"
    settings["dtype"] = sampling.dtype or "as stored"
    return _report(subset, {n: layer_files(_folder(out, n)) for n in subset.numbers}, out, settings)


def score_results(subset: Subset, results: Path, out: Path) -> str:
    """Write the report of existing layers to OUT.

    Raises:
      QilError: listing all results that are missing or do not fit, before any is scored.
    """
    files = find_results(subset, results)
    claim(out, {**subset.identity(), "results": content(files)})
    return _report(subset, files, out, {"results": results.resolve().name})


def content(files: Mapping[int, Sequence[Path]]) -> str:
    """16 hexadecimal digits of the SHA-256 of the layers of all results."""
    digest = hashlib.sha256()
    for number, layers in sorted(files.items()):
        sums = [hashlib.sha256(read_file(layer)).hexdigest() for layer in layers]
        digest.update(f"{number} {' '.join(sums)}\n".encode())
    return digest.hexdigest()[:16]


def batches(subset: Subset, size: int) -> list[list[int]]:
    """The records' numbers in batches; the records of a batch have one shape, so that they share a compiled program."""
    shape = lambda number: (int(subset.metadata.layers[number]), *subset.bucket(number), number)
    ordered = sorted(subset.numbers, key=shape)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def decomposed(
    groups: Sequence[Sequence[int]], subset: Subset, sampling: Sampling, checkpoint: LayeredCheckpoint, out: Path
) -> Iterator[int]:
    """Decompose whole batches, so that a resumed run gives the same result; yields numbers as they are saved."""
    pipeline = sampling.load(checkpoint)
    settings = Settings(steps=sampling.steps, guidance=sampling.guidance)
    for group in groups:
        found = pipeline.decompose([request_for(number, subset, sampling) for number in group], settings)
        for number, decomposition in zip(group, found, strict=True):
            if not _folder(out, number).exists():
                decomposition.layered.save(_folder(out, number))
            yield number


def request_for(number: int, subset: Subset, sampling: Sampling) -> Request:
    """The request that decomposes a record's composite."""
    record = subset.record(number)
    shows = len(true_sample(record, subset.bucket(number)).layers)
    prompt = (record.caption if sampling.prompts is Prompts.CAPTIONS else "") or NO_PROMPT
    return Request(
        image=Image.fromarray(composite_8bit(record.layers, record.size)),
        layers=sampling.layers or min(max(2, shows), MAX_LAYERS),
        prompt=prompt,
        negative_prompt=None if prompt == NO_PROMPT else NO_PROMPT,  # guidance between equal prompts has no effect
        resolution=subset.resolution,
        seed=sampling.seed + number,
    )


def find_results(subset: Subset, folder: Path) -> dict[int, list[Path]]:
    """The PNGs of each record's layers, bottom to top; only headers are read.

    Raises:
      ProblemsError: listing all that is missing or does not fit.
    """
    problems, folders = [], {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if not path.name.isdecimal() or int(path.name) >= len(subset.source):
            problems.append(f"{path}: its name is not the number of one of the {len(subset.source)} records")
        elif int(path.name) in folders:
            problems.append(f"{path}: has the number of {folders[int(path.name)].name}")
        else:
            folders[int(path.name)] = path
    files = {}
    for number in subset.numbers:
        if number not in folders:
            problems.append(f"{folder / f'{number:05d}'}: missing, the layers of {subset.source.name(number)}")
            continue
        try:
            files[number] = layer_files(folders[number])
            _require_fitting(files[number], {subset.size(number), subset.bucket(number)})
        except (QilError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise ProblemsError("results do not match the records", problems)
    return files


def layer_files(folder: Path) -> list[Path]:
    """The PNGs of a folder of layers, bottom to top: those that its result.json lists, or all, by number.

    Raises:
      QilError: if names have no number, or there is no PNG.
    """
    record = read_record(folder)
    if record is not None:
        return [folder / name for name in listed_files(record, str(folder), RECORD)]
    numbered = [(re.match(r"\d+", file.stem), file) for file in pngs_in(folder)]
    wrong = [file.name for digits, file in numbered if digits is None]
    if wrong or not numbered:
        what = f"names without a number: {', '.join(sorted(wrong))}" if wrong else "no PNG"
        raise QilError(f"{folder}: {what}: expected one PNG per layer, numbered bottom to top")
    return [file for _, file in sorted((int(digits[0]), file) for digits, file in numbered if digits)]


def _require_fitting(files: Sequence[Path], wanted: set[tuple[int, int]]) -> None:
    if len(files) < 2:
        raise QilError(f"{files[0].parent}: one layer: the protocol needs two or more")
    for file in files:
        with opened(file) as stream, Image.open(stream) as image:
            if image.size not in wanted:
                sizes = " or ".join(f"{width} x {height}" for width, height in sorted(wanted))
                raise QilError(f"{file}: {image.width} x {image.height} pixels, but its record has {sizes}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Records with their decompositions, loaded one at a time."""

    subset: Subset
    files: Mapping[int, Sequence[Path]]

    def read(self, number: int) -> tuple[TrueSample, list[np.ndarray]]:
        """The reference, resized to the size of the decomposition, and the decomposition."""
        made = [np.asarray(decoded(read_file(file), str(file))) for file in self.files[number]]
        return true_sample(self.subset.record(number), made[0].shape[1::-1]), made

    def results(self) -> Iterator[LayerResult | None]:
        """Scores in the records' order; None for a record with fewer than two visible layers at the model's size."""
        for number in self.subset.numbers:
            true, made = self.read(number)
            yield scored(f"{number:05d}", true, made) if len(true.layers) >= 2 else None


def _report(subset: Subset, files: Mapping[int, Sequence[Path]], out: Path, more: Mapping[str, Any]) -> str:
    pairs = _Pairs(subset=subset, files=files)
    every = [result for result in shown(pairs.results(), len(files), "scoring") if result is not None]
    settings = {
        "split": subset.split,
        "records": subset.count,
        "skipped, fewer than two layers": subset.count - len(every),
    }
    settings |= {**more, "resolution": subset.resolution}
    return write_layer_report(out, TITLE, every, lambda name: sample_rows(*pairs.read(int(name))), settings)


def _folder(out: Path, number: int) -> Path:
    return out / SAMPLES / f"{number:05d}"
