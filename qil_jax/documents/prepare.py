"""One document to one record, with a row for the report; work that is done stays done (paper.md 4)."""

import contextlib
import dataclasses
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from psd_tools import PSDImage

from qil_jax.documents.anomalies import AnomalyDetector, PatchDetector
from qil_jax.documents.cleaning import clean
from qil_jax.documents.duplicates import near_duplicates, perceptual_hash
from qil_jax.documents.limits import CleaningConfig, PSDLimits
from qil_jax.documents.psd import read_psd
from qil_jax.documents.reasons import Dropped, Reason
from qil_jax.documents.sandbox import ProcessLimits, Sandbox
from qil_jax.errors import QilError
from qil_jax.files import write_whole
from qil_jax.layers.compositing import composite_8bit
from qil_jax.layers.sheets import png_bytes
from qil_jax.records.record import Record, decode, encode

SUFFIXES = {".psd", ".psb"}
THUMBNAIL = 160
"""Longer side of the pictures that reports show."""


RULES = 2
"""Goes up when the same thresholds come to mean something else, so that kept work is not taken for today's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """All thresholds on the way from a document to a record; a change of any of them means that all is done anew.

    Attributes:
      file_bytes: of a document, checked before it is read.
      duplicate_bits: documents whose perceptual hashes differ in no more bits are duplicates.
      detectors: look for anomalies.
    """

    psd: PSDLimits = dataclasses.field(default_factory=PSDLimits)
    cleaning: CleaningConfig = dataclasses.field(default_factory=CleaningConfig)
    process: ProcessLimits = dataclasses.field(default_factory=ProcessLimits)
    file_bytes: int = 2 << 30
    duplicate_bits: int = 4
    detectors: tuple[AnomalyDetector, ...] = (PatchDetector(),)

    @property
    def fingerprint(self) -> str:
        """Names the folder of the work that was done under these thresholds."""
        return hashlib.sha256(repr((RULES, self)).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What became of a document; `reason` is None for one that is kept."""

    document: str
    digest: str
    reason: Reason | None = None
    detail: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    source: str = ""
    licence: str = ""
    category: str = ""
    layers_before: int = 0
    layers_after: int = 0
    psnr_compositor: float | None = None
    psnr_stored: float | None = None
    picture_hash: int = 0
    notes: tuple[str, ...] = ()
    decisions: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Row":
        """What `to_json` gave."""
        lists = {key: tuple(values[key]) for key in ("size", "notes", "decisions")}
        reason = None if values["reason"] is None else Reason(values["reason"])
        return cls(**{**values, **lists, "reason": reason})


def find_documents(source: str) -> list[epath.Path]:
    """Photoshop documents of a folder (with its subfolders), a glob, a bucket, or one file, in order of their names.

    Raises:
      FileNotFoundError: if there is none.
    """
    path = epath.Path(source)
    if path.is_dir():
        found = list(_below(path))
    elif any(sign in source for sign in "*?["):
        fixed = next(parent for parent in path.parents if not any(sign in str(parent) for sign in "*?["))
        found = list(fixed.glob(str(path.relative_to(fixed))))
    else:
        found = [path] if path.exists() else []
    if not found:
        raise FileNotFoundError(f"{source}: no .psd or .psb there: give a folder, a glob or a file")
    return sorted(found)


def _below(folder: epath.Path) -> Iterator[epath.Path]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _below(entry)
        elif entry.suffix.lower() in SUFFIXES:
            yield entry


def document_names(documents: Sequence[epath.Path]) -> list[str]:
    """Names for reports: paths without the folder that all documents share."""
    parts = [file.parts for file in documents]
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return ["/".join(p[shared:]) for p in parts]


class Preparer:
    """Prepares documents one after the other; the result of each is kept in a folder and found again there."""

    def __init__(self, config: PrepareConfig, work: epath.Path):
        self.config, self.work = config, work / config.fingerprint
        self._sandbox = Sandbox(config.process)

    def __call__(self, path: str, name: str) -> Row:
        """What became of the document; its record is written beside the row if it is kept."""
        file = epath.Path(path)
        try:
            size = file.stat().length
            if size > self.config.file_bytes:
                raise Dropped(Reason.TOO_LARGE, f"{size} bytes, {self.config.file_bytes} at most")
            data = file.read_bytes()
        except Dropped as dropped:
            return Row(document=name, digest="", reason=dropped.reason, detail=dropped.detail)
        except OSError as error:
            return Row(document=name, digest="", reason=Reason.UNREADABLE, detail=f"{error}")
        digest = hashlib.sha256(data).hexdigest()
        row_file = self.work / f"{digest}.json"
        if row_file.exists():
            return dataclasses.replace(Row.from_json(json.loads(row_file.read_text())), document=name)
        row = self._prepare(data, Row(document=name, digest=digest))
        write_whole(row_file, json.dumps(row.to_json(), indent=1).encode())
        return row

    def _prepare(self, data: bytes, row: Row) -> Row:
        try:
            facts, example = self._sandbox(prepare, data, self.config)
        except Dropped as dropped:
            with contextlib.suppress(Exception):  # a picture for the report, if there is one
                write_whole(self.work / f"{row.digest}.png", self._sandbox(thumbnail, data))
            return dataclasses.replace(row, reason=dropped.reason, detail=dropped.detail)
        write_whole(self.work / f"{row.digest}.record", example)
        return dataclasses.replace(row, **facts)

    def close(self) -> None:
        """End the child process."""
        self._sandbox.close()


def prepare(data: bytes, config: PrepareConfig) -> tuple[dict[str, Any], bytes]:
    """A document's facts for its row, and its record as bytes. Runs in the sandbox.

    Raises:
      Dropped: if it is not kept.
    """
    document = read_psd(data, config.psd)
    cleaned = clean(document.layers, document.size, config.cleaning, config.detectors)
    picture = composite_8bit(cleaned.layers, document.size)
    facts = {
        "mode": document.mode,
        "size": document.size,
        "layers_before": len(document.layers),
        "layers_after": len(cleaned.layers),
        "psnr_compositor": document.psnr_compositor,
        "psnr_stored": document.psnr_stored,
        "picture_hash": perceptual_hash(picture),
        "notes": document.notes,
        "decisions": cleaned.decisions,
    }
    record = Record(layers=cleaned.layers, size=document.size, decisions=document.notes + cleaned.decisions)
    return facts, to_bytes(record)


def thumbnail(data: bytes) -> bytes:
    """The picture that a document stores, small, as PNG. Runs in the sandbox."""
    picture = PSDImage.open(io.BytesIO(data)).topil()
    if picture is None:
        raise QilError("the document stores no picture")
    return png_bytes(picture.convert("RGBA" if picture.has_transparency_data else "RGB"), THUMBNAIL)


def load_record(done: epath.Path, digest: str) -> Record:
    """The record that was prepared for the document of this digest."""
    return from_bytes((done / f"{digest}.record").read_bytes())


def without_duplicates(rows: Sequence[Row], config: PrepareConfig) -> list[Row]:
    """The rows again, those of near-duplicates dropped."""
    hashes = {row.document: row.picture_hash for row in rows if row.reason is None}
    originals = near_duplicates(hashes, config.duplicate_bits)
    return [
        dataclasses.replace(row, reason=Reason.DUPLICATE, detail=f"looks like {originals[row.document]}")
        if row.document in originals
        else row
        for row in rows
    ]


def to_bytes(record: Record) -> bytes:
    """A record as a file: one line of JSON, then the pixels, deflated."""
    example = encode(record)
    pixels = example.pop("pixels")
    facts = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in example.items()}
    return json.dumps(facts).encode() + b"\n" + zlib.compress(pixels.tobytes(), 1)


def from_bytes(data: bytes) -> Record:
    """What `to_bytes` was given."""
    facts, _, pixels = data.partition(b"\n")
    return decode({**json.loads(facts), "pixels": np.frombuffer(zlib.decompress(pixels), np.uint8)})
