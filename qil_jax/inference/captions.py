"""Captions in place of prompts that are missing, and files in which they are kept, so that each is written once."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from qil_jax.choices import CaptionLanguage
from qil_jax.errors import QilError
from qil_jax.files import text_beside, whole_file
from qil_jax.inference.pictures import PROMPT, InputImage
from qil_jax.inference.request import Request
from qil_jax.strict_json import read_json

FOLDER = ".captions"
"""The folder beside a run's results in which captions are kept."""


def prompts_of(requests: Sequence[Request], write: Callable[..., list[str]] | None) -> list[str]:
    """The prompts of requests; of one that has none a caption of `write`, or an empty prompt if that is None.

    `write` is the method `captions` of a pipeline.
    """
    alike: dict[tuple[int | None, CaptionLanguage], list[int]] = {}
    for i, request in enumerate(requests):
        if request.prompt is None:
            alike.setdefault((request.resolution, request.caption_language), []).append(i)
    prompts: dict[int, str] = {}
    for (resolution, language), indexes in alike.items():
        texts = [""] * len(indexes)
        if write:
            images = [requests[i].image for i in indexes]
            texts = write(images, resolution=resolution, language=language, batch=len(indexes))
        prompts |= dict(zip(indexes, texts, strict=True))
    return [prompts[i] if request.prompt is None else request.prompt for i, request in enumerate(requests)]


@runtime_checkable
class CaptionStore(Protocol):
    """Files of captions."""

    def read(self, name: str, picture: InputImage) -> str | None:
        """The caption of a picture, whose result is called `name`; None if there is none."""
        ...

    def keep(self, name: str, picture: InputImage, caption: str) -> str:
        """Keep a caption, unless another program has meanwhile kept one; the caption that is kept."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptCaptions:
    """Captions under the hash of what determines them.

    Attributes:
      folder: folder of the files, which is made if needed.
      asked: everything but the picture that determines a caption, as JSON values.
    """

    folder: Path
    asked: Mapping[str, Any]

    def read(self, name: str, picture: InputImage) -> str | None:
        """The caption of these bytes; None if there is none, or its file was altered."""
        try:
            record = read_json(self._file(picture), fix="")
        except (OSError, QilError):
            return None
        fits = isinstance(record, dict) and record.get("made_from") == self._made_from(picture)
        caption = record.get("caption") if fits else None
        return caption if isinstance(caption, str) else None

    def keep(self, name: str, picture: InputImage, caption: str) -> str:
        """Write the caption, whole."""
        file = self._file(picture)
        if self.read(name, picture) is None:
            file.unlink(missing_ok=True)  # it was altered
        record = {"picture": picture.path.name, "caption": caption, "made_from": self._made_from(picture)}
        try:
            with whole_file(file) as draft:
                draft.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        except FileExistsError:
            there = self.read(name, picture)
            return caption if there is None else there
        return caption

    def _made_from(self, picture: InputImage) -> dict[str, Any]:
        return {**self.asked, "picture_sha256": picture.sha256}

    def _file(self, picture: InputImage) -> Path:
        made_from = json.dumps(self._made_from(picture), sort_keys=True)
        return self.folder / f"{hashlib.sha256(made_from.encode()).hexdigest()[:32]}.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionFiles:
    """A text file for each picture, from which later runs take its prompt.

    Attributes:
      folder: folder of the files, which are called as results; None: beside each picture, with the picture's name.
    """

    folder: Path | None = None

    def read(self, name: str, picture: InputImage) -> str | None:
        """The text of the picture's file; None if there is none."""
        text = text_beside(self.file(name, picture), PROMPT)
        return None if text is None else text.strip()

    def keep(self, name: str, picture: InputImage, caption: str) -> str:
        """Write the file, whole; one that is there is never replaced."""
        file = self.file(name, picture)
        try:
            with whole_file(file) as draft:
                draft.write_text(f"{caption}\n", encoding="utf-8")
        except FileExistsError:
            there = self.read(name, picture)
            return caption if there is None else there
        return caption

    def file(self, name: str, picture: InputImage) -> Path:
        """The file of a picture's caption."""
        return picture.path.with_suffix(PROMPT) if self.folder is None else self.folder / f"{name}{PROMPT}"

    def problems(self, pictures: Mapping[str, InputImage]) -> list[str]:
        """Messages for files that cannot be written, or that two pictures would share."""
        problems, owners = [], dict[Path, InputImage]()
        for name, picture in pictures.items():
            file = self.file(name, picture)
            folder = next(path for path in file.parents if os.path.lexists(path))
            if not folder.is_dir():
                problems.append(f"{folder}: is a file; give --out a folder")
            elif not os.access(folder, os.W_OK | os.X_OK):
                problems.append(f"{folder}: not writable; give --out another folder for the captions")
            other = owners.setdefault(file, picture)
            if other is not picture:
                problems.append(
                    f"{other.path} and {picture.path.name} would share {file.name}; give --out, or rename one"
                )
        return list(dict.fromkeys(problems))
