"""The documents of a build, and the outcome for each as a row of the report."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from qil_jax.documents.reasons import Reason
from qil_jax.errors import QilError
from qil_jax.files import is_remote

SUFFIXES = {".psd", ".psb"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportRow:
    """The outcome for one document.

    Attributes:
      document: path of the document relative to the folder that all documents share.
      digest: SHA-256 of the document's bytes, empty if it could not be read.
      reason: reason for which the document is dropped; None if it is kept.
      detail: description of the fault, empty for a kept document.
      mode: colour mode and bits per channel, such as "RGB 8".
      size: width and height of the canvas in pixels.
      source: origin of the document, read from its sidecar.
      licence: licence of the document, read from its sidecar.
      category: category of the document, read from its sidecar.
      layers_before: number of layers before cleaning.
      layers_after: number of layers after cleaning and merging.
      psnr_compositor: PSNR in dB of the layers' composite against psd-tools' composite.
      psnr_stored: PSNR in dB of the layers' composite against the stored image; None if there is none.
      psnr_thumbnail: PSNR in dB of the layers' composite against the stored thumbnail; None if there is none.
      picture_hash: 64-bit perceptual hash of the composite.
      notes: content that was changed or not rendered when the document was read, one sentence each.
      decisions: changes made by cleaning, one sentence each.
    """

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
    psnr_thumbnail: float | None = None
    picture_hash: int = 0
    notes: tuple[str, ...] = ()
    decisions: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The row encoded as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ReportRow":
        """Decode a row that `to_json` encoded."""
        lists = {key: tuple(values[key]) for key in ("size", "notes", "decisions")}
        reason = None if values["reason"] is None else Reason(values["reason"])
        return cls(**{**values, **lists, "reason": reason})


def find_documents(source: str) -> list[epath.Path]:
    """Photoshop documents of a folder (with its subfolders), a glob, a bucket, or one file, sorted by path.

    Raises:
      FileNotFoundError: if there is no such document.
    """
    path = epath.Path(source)
    if path.is_dir():
        found = list(_below(path))
    elif any(sign in source for sign in "*?["):
        fixed = next(parent for parent in path.parents if not any(sign in str(parent) for sign in "*?["))
        found = list(fixed.glob(str(path.relative_to(fixed))))
    else:
        found = [path] if path.exists() else []
    if all(entry.is_dir() for entry in found):
        raise FileNotFoundError(f"{source}: no .psd or .psb there: give a folder, a glob or a file")
    return sorted(found)


def _below(top: epath.Path) -> Iterator[epath.Path]:
    """Documents of a folder and its subfolders, of which each is walked once, those that links lead to at last.

    Links to folders that are walked already, so also those that would lead round in a circle, come as if they were
    documents: their rows say what they are.
    """
    folders, links, walked = [top], list[epath.Path](), set[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        place = str(folder) if is_remote(folder) else os.path.realpath(folder)
        if place in walked:
            yield folder
            continue
        walked.add(place)
        for entry in folder.iterdir():
            if entry.is_dir():
                (links if os.path.islink(entry) else folders).append(entry)  # noqa: PTH114 (epath has no such method)
            elif entry.suffix.lower() in SUFFIXES:
                yield entry
        links.sort(reverse=True)


def document_names(documents: Sequence[epath.Path]) -> list[str]:
    """Names for reports: paths relative to the folder that all documents share. Bytes that are no UTF-8 are escaped.

    Raises:
      QilError: if two documents would have one name.
    """
    paths = [file.parts for file in documents]
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == paths[0][shared] for p in paths):
        shared += 1
    names = ["/".join(p[shared:]).encode(errors="surrogateescape").decode(errors="backslashreplace") for p in paths]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise QilError(f"two documents are called {twice[0]} once bytes that are no UTF-8 are escaped: rename one")
    return names
