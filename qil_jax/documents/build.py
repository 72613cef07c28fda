"""Conversion of documents to the contents of a dataset, by Apache Beam or in a plain loop.

A build has three steps of one Beam job each: every document is prepared by itself (`prepare.py`); near-duplicates are
dropped, and the others are captioned; those that have a caption are written (`dataset.py`). Intermediate results are
kept in `.work` under the output folder, so an interrupted build continues where it stopped.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from qil_jax.documents.captions import Captioner
from qil_jax.documents.dataset import BuildInfo, Contents
from qil_jax.documents.prepare import PrepareConfig, Preparer, load_record, without_duplicates
from qil_jax.documents.reasons import Dropped
from qil_jax.documents.rows import ReportRow, document_names
from qil_jax.documents.runners import PipelineOptions, beam
from qil_jax.documents.sidecars import sidecar_fields
from qil_jax.files import write_whole
from qil_jax.layers.compositing import composite_8bit
from qil_jax.records.record import encode
from qil_jax.records.splits import SPLITS, split_of

WORK = ".work"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workplace:
    """Settings that all steps of a build share.

    Attributes:
      config: limits and thresholds of the preparation.
      work: folder in which intermediate results are kept.
      options: options of the Beam pipeline; None runs a plain loop instead.
    """

    config: PrepareConfig
    work: epath.Path
    options: PipelineOptions | None = None

    @property
    def done(self) -> epath.Path:
        """Folder of the results that this config produced."""
        return self.work / self.config.fingerprint


def prepare_all(documents: Sequence[epath.Path], place: Workplace) -> list[ReportRow]:
    """Prepare every document; one row each, in the documents' order, near-duplicates marked as dropped."""
    pairs = list(zip(map(str, documents), document_names(documents), strict=True))
    rows = _run("prepare", functools.partial(Preparer, place.config, place.work), pairs, place)
    return without_duplicates(rows, place.config)


def composites(rows: Sequence[ReportRow], place: Workplace) -> Iterator[UInt8[np.ndarray, "y x 4"]]:
    """The composites of the documents that are kept, in the rows' order."""
    for row in rows:
        if row.reason is None:
            record = load_record(place.done, row.digest)
            yield composite_8bit(record.layers, record.size)


def caption_all(
    rows: Sequence[ReportRow],
    documents: Sequence[epath.Path],
    make_captioner: Callable[[], Captioner],
    place: Workplace,
) -> list[ReportRow]:
    """Caption the documents that are kept; all rows, those without a caption marked as dropped."""
    kept = [(row, str(path)) for row, path in zip(rows, documents, strict=True) if row.reason is None]
    done = _run("caption", functools.partial(_Captioning, make_captioner, place), kept, place)
    by_name = {row.document: row for row in done}
    return [by_name.get(row.document, row) for row in rows]


class _Captioning:
    """Captions documents one by one; each caption is kept beside its record."""

    def __init__(self, make_captioner: Callable[[], Captioner], place: Workplace):
        self.captioner, self.place = make_captioner(), place

    def __call__(self, row: ReportRow, path: str) -> ReportRow:
        record = load_record(self.place.done, row.digest)
        try:
            fields = sidecar_fields(path)
            caption = self.captioner(composite_8bit(record.layers, record.size), path)
        except Dropped as dropped:
            return dataclasses.replace(row, reason=dropped.reason, detail=dropped.detail)
        write_whole(self.place.done / f"{row.digest}.txt", caption.encode())
        return dataclasses.replace(row, **fields)

    def close(self) -> None:
        pass


def _run(step: str, make: Callable[[], Any], items: Sequence[tuple[Any, ...]], place: Workplace) -> list[ReportRow]:
    """The rows `make()(*item)` of all items in their order, computed by Beam or in a loop."""
    if place.options is None:
        worker = make()
        rows = [worker(*item) for item in items]
        worker.close()
        return rows
    folder = place.work / f"rows-{step}"
    if folder.exists():
        folder.rmtree()
    with beam.Pipeline(options=place.options) as pipeline:
        coded = [tuple(os.fsencode(part) if isinstance(part, str) else part for part in item) for item in items]
        _ = pipeline | beam.Create(list(enumerate(coded))) | beam.Reshuffle() | beam.ParDo(_Step(make, str(folder)))
    return [ReportRow.from_json(json.loads((folder / f"{i}.json").read_text())) for i in range(len(items))]


class _Step(beam.DoFn):
    """Beam transform whose worker is kept between bundles; rows go to files, as not every runner can return them.

    Texts come as bytes, since Beam carries no path that is not UTF-8.
    """

    def __init__(self, make: Callable[[], Any], folder: str):
        self.make, self.folder = make, folder
        self._worker: Any = None

    def setup(self) -> None:
        self._worker = self.make()

    def process(self, element: tuple[int, tuple[Any, ...]]) -> None:
        index, item = element
        row: ReportRow = self._worker(*(os.fsdecode(part) if isinstance(part, bytes) else part for part in item))
        write_whole(epath.Path(self.folder) / f"{index}.json", json.dumps(row.to_json()).encode())

    def teardown(self) -> None:
        if self._worker is not None:
            self._worker.close()


def example_of(row: ReportRow, *, info: BuildInfo, done: str) -> dict[str, Any]:
    """The example of a kept and captioned document."""
    record = dataclasses.replace(
        load_record(epath.Path(done), row.digest),
        caption=(epath.Path(done) / f"{row.digest}.txt").read_text(),
        source=row.source or info.source or row.document,
        licence=row.licence or info.licence,
        category=row.category,
    )
    return encode(record)


def contents_of(rows: Sequence[ReportRow], info: BuildInfo, place: Workplace) -> Contents:
    """Examples of the kept rows, split by the hashes of their documents."""
    kept = [row for row in rows if row.reason is None]
    splits = {split: [(row.digest, (row,)) for row in kept if split_of(row.digest) == split] for split in SPLITS}
    return Contents(splits=splits, make=functools.partial(example_of, info=info, done=str(place.done)))
