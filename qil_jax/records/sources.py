"""Sources of records: datasets of this package, folders of PNGs, and folders that LayerD's code renders from Crello.

A source gives records by number, and metadata of all records without decoding pixels. Files are opened on first access,
so that a source can be sent to a worker process.
"""

import dataclasses
import functools
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import Int
from PIL import Image
from rich.progress import track

from qil_jax.errors import QilError, counted
from qil_jax.extras import require
from qil_jax.files import opened, read_text, write_whole
from qil_jax.layers.layered_image import CAPTION, LayeredImage, pngs_in
from qil_jax.records.record import Record, decode, from_layered_image

SPLIT = "train"
"""The default split."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RecordMetadata:
    """Properties of all records that are known before any pixel is decoded.

    Attributes:
      sizes: width and height of each record in pixels.
      layers: number of layers of each record.
      captions: length of each record's caption in characters.
    """

    sizes: Int[np.ndarray, "n 2"]
    layers: Int[np.ndarray, " n"]
    captions: Int[np.ndarray, " n"]

    @classmethod
    def from_rows(cls, rows: Int[np.ndarray, "n 4"]) -> "RecordMetadata":
        """Make the metadata from rows of width, height, number of layers and length of the caption, one per record."""
        return cls(sizes=rows[:, :2], layers=rows[:, 2], captions=rows[:, 3])

    @property
    def rows(self) -> Int[np.ndarray, "n 4"]:
        """Rows of width, height, number of layers and length of the caption, one per record."""
        return np.concatenate([self.sizes, self.layers[:, None], self.captions[:, None]], axis=1)


@runtime_checkable
class RecordSource(Protocol):
    """A source that provides records by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def name(self, index: int) -> str:
        """Location of a record in its source, for messages."""
        ...

    def metadata(self) -> RecordMetadata:
        """Sizes, layer counts and caption lengths of all records."""
        ...


class RecordError(QilError):
    """A record cannot be read. The message names the record and the reason."""


class SplitError(QilError):
    """A dataset has no record in a split. The message names the splits that have."""


def read(source: RecordSource, index: int) -> Record:
    """A record of a source by its number.

    Raises:
      RecordError: if the record cannot be read.
    """
    try:
        return source[index]
    except Exception as error:  # readers raise any error; the message must name the record
        raise RecordError(f"{source.name(index)} cannot be read: {error}") from error


def open_source(path: str | Path, split: str = SPLIT) -> RecordSource:
    """The records of a folder.

    Args:
      path: a dataset that `qil build-dataset` or `qil make-scenes` wrote (the folder given as --out, or the one with
        dataset_info.json); a folder of folders of PNGs (`LayeredImage.save`); or what LayerD's
        `generate_crello_matting.py --save-layers` wrote.
      split: train, validation or test; plain folders without folders of these names have only one.

    Raises:
      QilError: if the folder is none of these, or holds no record; the message lists what was looked for. Or if
        tensorflow-datasets is needed and not installed.
    """
    folder = epath.Path(path)
    dataset = dataset_in(folder)
    if dataset is not None:
        return DatasetSource(dataset, split)
    for candidate in (Path(folder) / split / "layers", Path(folder) / split, Path(folder)):
        samples = sorted({file.parent for file in candidate.glob("*/*.png")})
        if samples:
            return FolderSource(samples, order=last_number if candidate.name == "layers" else None)
    raise QilError(
        f"{folder}: no records: expected dataset_info.json (here or in layered_dataset/1.0.0), folders with 000.png, "
        f"001.png, ..., or {split}/layers/*/*.png of LayerD's Crello"
    )


def dataset_in(folder: epath.Path) -> str | None:
    """The newest dataset of a folder, or the folder itself if it is one; None if there is none.

    Raises:
      QilError: if there is one, and tensorflow-datasets, which reads it, is not installed.
    """
    found = [folder, *sorted(folder.glob("layered_dataset/*"))] if folder.is_dir() else []
    datasets = [str(f) for f in found if (f / "dataset_info.json").exists()]
    if not datasets:
        return None
    require(str(folder), "tensorflow_datasets")
    return datasets[-1]


def open_sources(paths: Sequence[str | Path], split: str = SPLIT) -> RecordSource:
    """The concatenated records of one or several folders, each opened by `open_source`.

    Raises:
      QilError: as `open_source`.
    """
    opened = [open_source(path, split) for path in paths]
    return opened[0] if len(opened) == 1 else UnionSource(opened)


class DatasetSource:
    """One split of a tensorflow-datasets folder of ArrayRecord shards, read without TensorFlow."""

    def __init__(self, folder: str, split: str):
        """Open the metadata of the dataset.

        Raises:
          SplitError: if there is no such split.
          QilError: if it does not hold layered records.
        """
        self.folder, self.split = folder, split
        info = _builder(folder).info
        if split not in info.splits or not info.splits[split].num_examples:
            filled = [name for name in info.splits if info.splits[name].num_examples]
            raise SplitError(f"{folder}: no split '{split}': it has {', '.join(filled) or 'none'}")
        missing = {"size", "boxes", "pixels", "caption"} - set(info.features)
        if missing:
            raise QilError(f"{folder}: its examples lack {', '.join(sorted(missing))}: not a dataset of layers")
        self.count = info.splits[split].num_examples

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        return decode(examples(self.folder, self.split)[index])

    def name(self, index: int) -> str:
        """Name of a record for messages: its split and number in the folder."""
        return f"{self.folder}: {self.split}[{index}]"

    def metadata(self) -> RecordMetadata:
        """The content of `metadata-SPLIT.npy` beside the shards; if it is missing, all records are read to write it.

        Raises:
          QilError: if the file does not fit the dataset.
        """
        file = epath.Path(self.folder) / f"metadata-{self.split}.npy"
        if file.exists():
            with file.open("rb") as stream:
                rows = np.load(stream, allow_pickle=False)
            if rows.shape != (len(self), 4):
                raise QilError(
                    f"{file} lists {counted(len(rows), 'record')}, but there are {len(self)}: remove that file"
                )
            return RecordMetadata.from_rows(rows)
        every = _with_progress(examples(self.folder, self.split), f"metadata of {self.split}")
        rows = np.array([_row_of(example) for example in every], np.int64)
        _keep(file, rows)
        return RecordMetadata.from_rows(rows)


@functools.cache
def _builder(folder: str) -> Any:
    import tensorflow_datasets as tfds  # takes a second, and folders do not need it

    return tfds.builder_from_directory(folder)


@functools.cache
def examples(folder: str, split: str) -> Sequence[Any]:
    """The flat examples of a split, as `records.record.decode` reads them."""
    return _builder(folder).as_data_source(split)


def _row_of(example: Any) -> tuple[int, int, int, int]:
    caption = example["caption"]
    width, height = example["size"]
    length = len(caption.decode() if isinstance(caption, bytes) else caption)
    return int(width), int(height), len(np.reshape(example["boxes"], (-1, 4))), length


def _keep(file: epath.Path, rows: np.ndarray) -> None:
    """Write the metadata unless the folder is read-only, where all records are read each time."""
    stream = io.BytesIO()
    np.save(stream, rows)
    try:
        write_whole(file, stream.getvalue())
    except OSError:
        return


class FolderSource:
    """One folder per record, with one PNG per layer, numbered bottom to top, and optionally `caption.txt`."""

    def __init__(self, folders: Sequence[Path], *, order: Callable[[Path], tuple[int, str]] | None = None):
        """`order` gives the sort key of a file, as for `LayeredImage.load`."""
        self.folders, self.order = list(folders), order

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> Record:
        return from_layered_image(LayeredImage.load(self.folders[index], order=self.order))

    def name(self, index: int) -> str:
        """Name of a record for messages: its folder."""
        return str(self.folders[index])

    def metadata(self) -> RecordMetadata:
        """Metadata of all records, from the headers of the PNGs."""
        return RecordMetadata.from_rows(
            np.array([self._row(f) for f in _with_progress(self.folders, "metadata")], np.int64)
        )

    def _row(self, folder: Path) -> tuple[int, int, int, int]:
        files = pngs_in(folder)
        with opened(files[0]) as stream, Image.open(stream) as image:
            width, height = image.size
        caption = folder / CAPTION
        return width, height, len(files), len(read_text(caption)) if caption.exists() else 0


def last_number(file: Path) -> tuple[int, str]:
    """Sort key of a file of LayerD: the number after the last underscore.

    Raises:
      QilError: if the name has no such number.
    """
    digits = re.search(r"_(\d+)$", file.stem)
    if digits is None:
        raise QilError(f"{file}: its name does not end in a number, as LayerD's ..._00.png does")
    return int(digits.group(1)), file.name


class UnionSource:
    """The concatenation of several sources."""

    def __init__(self, sources: Sequence[RecordSource]):
        self.sources = list(sources)
        self.ends = np.cumsum([len(part) for part in self.sources])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Record:
        part, at = self._find(index)
        return part[at]

    def name(self, index: int) -> str:
        """Location of a record, as the source that holds it names it."""
        part, at = self._find(index)
        return part.name(at)

    def metadata(self) -> RecordMetadata:
        """Metadata of the records of all sources."""
        return RecordMetadata.from_rows(np.concatenate([part.metadata().rows for part in self.sources]))

    def _find(self, index: int) -> tuple[RecordSource, int]:
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[which], index - int(self.ends[which - 1] if which else 0)


def _with_progress(items: Any, what: str) -> Iterable[Any]:
    every: Callable[..., Iterable[Any]] = track
    return every(items, description=what, transient=True) if len(items) > 1000 else items
