"""Conversion of a document to a record and a row of the report, cached so that no document is read twice.

The steps follow arXiv 2512.15603, section 4.1 (docs/specification.md, 9).
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from psd_tools import PSDImage

from qil_jax.documents.anomalies import AnomalyDetector, PatchDetector
from qil_jax.documents.cleaning import clean
from qil_jax.documents.duplicates import near_duplicates, perceptual_hash
from qil_jax.documents.limits import CleaningConfig, PSDLimits
from qil_jax.documents.psd import read_psd, require_expressed
from qil_jax.documents.reasons import Dropped, Reason
from qil_jax.documents.rows import ReportRow
from qil_jax.documents.sandbox import ProcessLimits, Sandbox
from qil_jax.errors import QilError
from qil_jax.files import read_file, write_whole
from qil_jax.identity import fingerprint
from qil_jax.layers.compositing import composite_8bit
from qil_jax.layers.sheets import png_bytes
from qil_jax.records.record import Record, decode, encode

THUMBNAIL = 160
"""Longer side in pixels of the images that reports show."""
RULES = 3
"""Version of the rules: raised when the same thresholds get another meaning, so that older results are not reused."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Settings of the conversion of documents to records; results are reused only under equal settings.

    Attributes:
      psd: limits that a document must respect to be read.
      cleaning: thresholds of the cleaning rules.
      process: time and memory limits of the process that reads a document.
      file_bytes: maximum size of a file in bytes, checked before the file is read.
      duplicate_bits: maximum Hamming distance, 0 to 15, between the 64-bit perceptual hashes of near-duplicates.
      detectors: anomaly detectors to apply; settings of those that are dataclasses are part of the fingerprint.
    """

    psd: PSDLimits = dataclasses.field(default_factory=PSDLimits)
    cleaning: CleaningConfig = dataclasses.field(default_factory=CleaningConfig)
    process: ProcessLimits = dataclasses.field(default_factory=ProcessLimits)
    file_bytes: int = 2 << 30
    duplicate_bits: int = 4
    detectors: tuple[AnomalyDetector, ...] = (PatchDetector(),)

    @property
    def fingerprint(self) -> str:
        """Name of the folder of results under these settings."""
        detectors = [(getattr(x, "__qualname__", type(x).__qualname__), _settings(x)) for x in self.detectors]
        return fingerprint((RULES, dataclasses.replace(self, detectors=()), detectors))


def _settings(detector: AnomalyDetector) -> Any:
    return detector if dataclasses.is_dataclass(detector) else None


class Preparer:
    """Prepares documents one by one; each result is kept in a folder, under the document's digest, and reused."""

    def __init__(self, config: PrepareConfig, work: epath.Path):
        self.config, self.work = config, work / config.fingerprint
        self._sandbox = Sandbox(config.process)

    def __call__(self, path: str, name: str) -> ReportRow:
        """The report row of a document, beside which the record of a kept document is written."""
        file = epath.Path(path)
        try:
            if file.is_dir():
                raise Dropped(Reason.UNREADABLE, "a link to a folder that is read already: remove it")
            size = file.stat().length
            if size > self.config.file_bytes:
                raise Dropped(Reason.TOO_LARGE, f"{size} bytes, {self.config.file_bytes} at most")
            data = read_file(file, most=self.config.file_bytes)
        except Dropped as dropped:
            return ReportRow(document=name, digest="", reason=dropped.reason, detail=dropped.detail)
        except (OSError, QilError) as error:
            return ReportRow(document=name, digest="", reason=Reason.UNREADABLE, detail=f"{error}")
        digest = hashlib.sha256(data).hexdigest()
        row_file = self.work / f"{digest}.json"
        if row_file.exists():
            return dataclasses.replace(ReportRow.from_json(json.loads(row_file.read_text())), document=name)
        row = self._prepare(data, ReportRow(document=name, digest=digest))
        write_whole(row_file, json.dumps(row.to_json(), indent=1).encode())
        return row

    def _prepare(self, data: bytes, row: ReportRow) -> ReportRow:
        try:
            fields, example = self._sandbox(prepare, data, self.config)
        except Dropped as dropped:
            fields, example = {"reason": dropped.reason, "detail": dropped.detail}, None
        if example is not None:
            write_whole(self.work / f"{row.digest}.record", example)
        else:
            with contextlib.suppress(Exception):  # a picture for the report, if there is one
                write_whole(self.work / f"{row.digest}.png", self._sandbox(thumbnail, data, self.config.psd))
        return dataclasses.replace(row, **fields)

    def close(self) -> None:
        """End the child process."""
        self._sandbox.close()


def prepare(data: bytes, config: PrepareConfig) -> tuple[dict[str, Any], bytes | None]:
    """The fields of a document's row, and its record as bytes; None if a rule drops it. Runs in the sandbox.

    Raises:
      Dropped: if the document cannot be read.
    """
    document = read_psd(data, config.psd)
    same = ("mode", "size", "psnr_compositor", "psnr_stored", "psnr_thumbnail", "notes")
    fields = {name: getattr(document, name) for name in same} | {"layers_before": len(document.layers)}
    try:
        require_expressed(document, config.psd)
        cleaned = clean(document.layers, document.size, config.cleaning, config.detectors)
    except Dropped as dropped:
        return {**fields, "reason": dropped.reason, "detail": dropped.detail}, None
    fields |= {
        "layers_after": len(cleaned.layers),
        "picture_hash": perceptual_hash(composite_8bit(cleaned.layers, document.size)),
        "decisions": cleaned.decisions,
    }
    record = Record(layers=cleaned.layers, size=document.size, decisions=document.notes + cleaned.decisions)
    return fields, to_bytes(record)


def thumbnail(data: bytes, limits: PSDLimits) -> bytes:
    """The image that a document stores, reduced to THUMBNAIL, as PNG. Runs in the sandbox.

    Raises:
      QilError: if the document stores no image.
    """
    picture = PSDImage.open(io.BytesIO(data), max_alloc_bytes=limits.max_alloc_bytes).topil()
    if picture is None:
        raise QilError("the document stores no picture")
    return png_bytes(picture.convert("RGBA" if picture.has_transparency_data else "RGB"), THUMBNAIL)


def load_record(done: epath.Path, digest: str) -> Record:
    """The record that was prepared from the document with this digest."""
    return from_bytes((done / f"{digest}.record").read_bytes())


def without_duplicates(rows: Sequence[ReportRow], config: PrepareConfig) -> list[ReportRow]:
    """The rows, in which near-duplicates are marked as dropped."""
    hashes = {row.document: row.picture_hash for row in rows if row.reason is None}
    originals = near_duplicates(hashes, config.duplicate_bits)
    return [
        dataclasses.replace(row, reason=Reason.DUPLICATE, detail=f"looks like {originals[row.document]}")
        if row.document in originals
        else row
        for row in rows
    ]


def to_bytes(record: Record) -> bytes:
    """A record as the bytes of a file: one line of JSON, then the pixels, deflated."""
    example = encode(record)
    pixels = example.pop("pixels")
    fields = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in example.items()}
    return json.dumps(fields).encode() + b"\n" + zlib.compress(pixels.tobytes(), 1)


def from_bytes(data: bytes) -> Record:
    """Decode a record that `to_bytes` encoded."""
    fields, _, pixels = data.partition(b"\n")
    return decode({**json.loads(fields), "pixels": np.frombuffer(zlib.decompress(pixels), np.uint8)})
