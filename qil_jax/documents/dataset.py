"""The dataset: a tensorflow-datasets folder of ArrayRecord shards, written by Apache Beam, read without TensorFlow."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.writer import ExampleWriter
from tensorflow_datasets.proto import tf_example_pb2

from qil_jax.documents.runners import PipelineOptions, beam, beam_options

NAME, VERSION = "layered_dataset", "1.0.0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildInfo:
    """Provenance of a dataset.

    Attributes:
      source: origin of those documents whose sidecar does not name a source.
      licence: licence of those documents whose sidecar does not name one, as an SPDX expression.
      citation: publication to cite for the documents, in BibTeX.
    """

    source: str = ""
    licence: str = ""
    citation: str = ""


def features() -> tfds.features.FeaturesDict:
    """Types and shapes of the fields that `records.record.encode` returns for an example."""
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
    """The examples of a dataset, which are computed when they are written.

    Attributes:
      splits: split name to its examples, each a key and the arguments of `make`.
      make: function that returns the flat arrays and texts of an example, as `records.record.encode` does.
    """

    splits: Mapping[str, Sequence[tuple[str, tuple[Any, ...]]]]
    make: Callable[..., dict[str, Any]]


class StableWriter(ExampleWriter):
    """Shard writer whose output is a deterministic function of the examples.

    Protobuf orders the fields of a serialised example by a hash that differs between processes, so each is serialised
    once more, with sorted fields.
    """

    def write(self, path: epath.PathLike, examples: Iterable[tuple[Any, bytes]]) -> Any:
        """Write pairs of a key and a serialised example into one shard."""
        return super().write(path, [(key, _sorted(data)) for key, data in examples])


def _sorted(data: bytes) -> bytes:
    example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue] (protobuf makes it at import)
    return example.FromString(data).SerializeToString(deterministic=True)


class LayeredDataset(tfds.core.BeamBasedBuilder):
    """The tensorflow-datasets builder that writes and describes the dataset."""

    VERSION = tfds.core.Version(VERSION)
    name = NAME
    pkg_dir_path = None  # pyright: ignore[reportAssignmentType] (no TAGS.txt or CITATIONS.bib beside this file)

    def __init__(self, *, contents: Contents, info: BuildInfo, **options: Any):
        self.contents, self.build_info = contents, info
        super().__init__(**options)

    def _log_download_bytes(self) -> None:
        """Log nothing, because nothing is downloaded."""

    def _log_download_done(self) -> None:
        """Log nothing, because nothing is downloaded."""

    def _example_writer(self) -> ExampleWriter:
        return StableWriter(self.info.file_format)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Layered images: RGBA layers, bottom to top, whose alpha blend is the image.",
            features=features(),
            citation=self.build_info.citation or None,
            license=self.build_info.licence or None,
        )

    def _split_generators(self, dl_manager: Any, pipeline: Any) -> dict[str, Any]:
        return {split: self._generate_examples(pipeline, split) for split, mine in self.contents.splits.items() if mine}

    def _generate_examples(self, pipeline: Any, split: str) -> Any:
        make = self.contents.make
        keys = pipeline | f"{split}: keys" >> beam.Create(list(self.contents.splits[split]))
        return (
            keys
            | f"{split}: shuffle" >> beam.Reshuffle()
            | f"{split}: examples" >> beam.Map(lambda x: (x[0], make(*x[1])))
        )


def write_dataset(
    contents: Contents, info: BuildInfo, out: epath.Path, options: PipelineOptions | None = None
) -> epath.Path:
    """Write a tensorflow-datasets folder, which appears only when it is complete, and return its path.

    Raises:
      FileExistsError: if the folder exists.
    """
    for unfinished in (out / NAME).glob("incomplete.*"):
        unfinished.rmtree()
    folder = out / NAME / VERSION
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it or write elsewhere")
    tfds.disable_progress_bar()  # it would count splits
    builder = LayeredDataset(contents=contents, info=info, data_dir=str(out), file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(beam_options=options or beam_options()))
    return folder
