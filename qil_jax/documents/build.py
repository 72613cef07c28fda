"""Documents to a tensorflow-datasets folder of ArrayRecord shards, by Apache Beam; read without TensorFlow.

Three steps of one Beam job each, because between them something must be known of all documents: each is prepared by
itself (`prepare.py`); near-duplicates are dropped, and what is kept is captioned; what has a caption is written.
All work is kept in `.work` under the output folder, so a build that was cut off goes on where it stopped, and the
folder of the dataset appears only when it is whole.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from qil_jax.documents.captions import Captioner
from qil_jax.documents.prepare import PrepareConfig, Preparer, Row, document_names, load_record, without_duplicates
from qil_jax.documents.reasons import Dropped
from qil_jax.documents.runners import PipelineOptions, beam, beam_options
from qil_jax.documents.sidecars import facts_beside
from qil_jax.files import write_whole
from qil_jax.layers.compositing import composite_8bit
from qil_jax.records.record import encode
from qil_jax.records.splits import SPLITS, split_of

NAME, VERSION = "layered_dataset", "1.0.0"
WORK = ".work"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """What a dataset says of itself.

    Attributes:
      source: of the documents, where they carry no sidecar that says more.
      licence: of the documents, likewise.
      citation: how to cite them, BibTeX.
    """

    source: str = ""
    licence: str = ""
    citation: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workplace:
    """What every step needs to know: thresholds, the folder that keeps work, and how Beam runs (None: not at all)."""

    config: PrepareConfig
    work: epath.Path
    options: PipelineOptions | None = None

    @property
    def done(self) -> epath.Path:
        """The folder of what was done under these thresholds."""
        return self.work / self.config.fingerprint


def prepare_all(documents: Sequence[epath.Path], place: Workplace) -> list[Row]:
    """Prepare every document, in parallel as the runner allows; rows in the documents' order, duplicates dropped."""
    pairs = list(zip(map(str, documents), document_names(documents), strict=True))
    rows = _run("prepare", functools.partial(Preparer, place.config, place.work), pairs, place)
    return without_duplicates(rows, place.config)


def caption_all(
    rows: Sequence[Row], documents: Sequence[epath.Path], make_captioner: Callable[[], Captioner], place: Workplace
) -> list[Row]:
    """Caption what is kept; rows again, those without a caption dropped."""
    kept = [(row, str(path)) for row, path in zip(rows, documents, strict=True) if row.reason is None]
    done = _run("caption", functools.partial(_Captioning, make_captioner, place), kept, place)
    by_name = {row.document: row for row in done}
    return [by_name.get(row.document, row) for row in rows]


class _Captioning:
    """Captions one document; the caption is kept beside its record."""

    def __init__(self, make_captioner: Callable[[], Captioner], place: Workplace):
        self.captioner, self.place = make_captioner(), place

    def __call__(self, row: Row, path: str) -> Row:
        record = load_record(self.place.done, row.digest)
        try:
            facts = facts_beside(path)
            caption = self.captioner(composite_8bit(record.layers, record.size), path)
        except Dropped as dropped:
            return dataclasses.replace(row, reason=dropped.reason, detail=dropped.detail)
        write_whole(self.place.done / f"{row.digest}.txt", caption.encode())
        return dataclasses.replace(row, **facts)

    def close(self) -> None:
        pass


def _run(step: str, make: Callable[[], Any], items: Sequence[tuple[Any, ...]], place: Workplace) -> list[Row]:
    """`make()(*item)` for every item, by Beam or in a loop; rows in the items' order."""
    if place.options is None:
        worker = make()
        rows = [worker(*item) for item in items]
        worker.close()
        return rows
    folder = place.work / f"rows-{step}"
    if folder.exists():
        folder.rmtree()
    with beam.Pipeline(options=place.options) as pipeline:
        _ = pipeline | beam.Create(list(enumerate(items))) | beam.Reshuffle() | beam.ParDo(_Step(make, str(folder)))
    return [Row.from_json(json.loads((folder / f"{i}.json").read_text())) for i in range(len(items))]


class _Step(beam.DoFn):
    """A step in a worker that lives from bundle to bundle; rows go to files, so that no runner needs to return them."""

    def __init__(self, make: Callable[[], Any], folder: str):
        self.make, self.folder = make, folder
        self._worker: Any = None

    def setup(self) -> None:
        self._worker = self.make()

    def process(self, element: tuple[int, tuple[Any, ...]]) -> None:
        index, item = element
        row: Row = self._worker(*item)
        write_whole(epath.Path(self.folder) / f"{index}.json", json.dumps(row.to_json()).encode())

    def teardown(self) -> None:
        if self._worker is not None:
            self._worker.close()


def example_of(row: Row, *, facts: DatasetFacts, done: str) -> dict[str, Any]:
    """The example of a kept and captioned document."""
    record = dataclasses.replace(
        load_record(epath.Path(done), row.digest),
        caption=(epath.Path(done) / f"{row.digest}.txt").read_text(),
        source=row.source or facts.source or row.document,
        licence=row.licence or facts.licence,
        category=row.category,
    )
    return encode(record)


def _with_stable_bytes(make: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`make`, in a process whose examples are the same bytes as any other's.

    Protobuf writes the fields of an example in an order of the process's own. tensorflow-datasets has no hook for it,
    so its serializer is changed, in whichever process writes.
    """

    def serialize(self: ExampleSerializer, example: Any) -> bytes:
        return self.get_tf_example(example).SerializeToString(deterministic=True)

    ExampleSerializer.serialize_example = serialize
    return make


def features() -> tfds.features.FeaturesDict:
    """The fields of an example, as `records.encode` gives them."""
    text = tfds.features.Text
    return tfds.features.FeaturesDict(
        {
            "size": tfds.features.Tensor(shape=(2,), dtype=np.int64, doc="Width and height of the canvas in pixels."),
            "boxes": tfds.features.Tensor(
                shape=(None, 4), dtype=np.int64, doc="Left, top, width, height of each layer, bottom to top."
            ),
            "pixels": tfds.features.Tensor(
                shape=(None,),
                dtype=np.uint8,
                encoding=tfds.features.Encoding.BYTES,
                doc="Straight RGBA of all boxes, as differences between rows: qil_jax.records.record.decode.",
            ),
            "names": tfds.features.Sequence(text(doc="Name of each layer.")),
            "caption": text(doc="What the composite shows."),
            "source": text(doc="Where the document comes from."),
            "licence": text(doc="Of the document."),
            "category": text(doc="Poster, illustration, ...; empty if it was not given."),
            "decisions": tfds.features.Sequence(text(doc="What was done to the document, in order.")),
        }
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """What a dataset is made of: per split, a key and the arguments of `make` for each example."""

    splits: Mapping[str, Sequence[tuple[str, tuple[Any, ...]]]]
    make: Callable[..., dict[str, Any]]


class LayeredDataset(tfds.core.BeamBasedBuilder):
    """Layered pictures as tensorflow-datasets writes and describes them."""

    VERSION = tfds.core.Version(VERSION)
    name = NAME
    pkg_dir_path = None  # pyright: ignore[reportAssignmentType] (no TAGS.txt or CITATIONS.bib beside this file)

    def __init__(self, *, contents: Contents, facts: DatasetFacts, **options: Any):
        self.contents, self.facts = contents, facts
        super().__init__(**options)

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded, and the programs say themselves what they write."""

    def _log_download_done(self) -> None:
        """As above."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Layered pictures: RGBA layers, bottom to top, whose alpha blend is the picture.",
            features=features(),
            citation=self.facts.citation or None,
            license=self.facts.licence or None,
        )

    def _split_generators(self, dl_manager: Any, pipeline: Any) -> dict[str, Any]:
        return {split: self._generate_examples(pipeline, split) for split, mine in self.contents.splits.items() if mine}

    def _generate_examples(self, pipeline: Any, split: str) -> Any:
        make = self.contents.make
        keys = pipeline | f"{split}: keys" >> beam.Create(list(self.contents.splits[split]))
        return (
            keys
            | f"{split}: shuffle" >> beam.Reshuffle()
            | f"{split}: examples" >> beam.Map(lambda x: (x[0], _with_stable_bytes(make)(*x[1])))
        )


def write_dataset(
    contents: Contents, facts: DatasetFacts, out: epath.Path, options: PipelineOptions | None = None
) -> epath.Path:
    """Write a tensorflow-datasets folder, which appears whole; its path.

    Raises:
      FileExistsError: if one is there.
    """
    for unfinished in (out / NAME).glob("incomplete.*"):
        unfinished.rmtree()
    folder = out / NAME / VERSION
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it or write elsewhere")
    tfds.disable_progress_bar()  # it counts splits
    builder = LayeredDataset(contents=contents, facts=facts, data_dir=str(out), file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(beam_options=options or beam_options()))
    return folder


def contents_of(rows: Sequence[Row], facts: DatasetFacts, place: Workplace) -> Contents:
    """The kept rows, split by the hashes of their documents."""
    kept = [row for row in rows if row.reason is None]
    splits = {split: [(row.digest, (row,)) for row in kept if split_of(row.digest) == split] for split in SPLITS}
    return Contents(splits=splits, make=functools.partial(example_of, facts=facts, done=str(place.done)))
