"""Search, decoding and checks of a run's input pictures before any compute."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from qil_jax.choices import LONGEST_TEXT
from qil_jax.errors import QilError
from qil_jax.export.names import safe_name
from qil_jax.files import text_beside
from qil_jax.inference.images import RESOLUTION, SUFFIXES, decode_image
from qil_jax.layers.pictures import LARGEST_SIDE, ImageError, Picture, read_bytes
from qil_jax.layers.profiles import SRGB
from qil_jax.programs import called

PROMPT = ".txt"
"""Suffix of the text file with a picture's name that holds its prompt."""
KEPT_BYTES = 1 << 30
"""Bytes of decoded pictures that stay in memory; further pictures are decoded again when needed."""
NO_PICTURE = "no picture by its name"
UNREAD = {
    ".jxl .jp2 .dng .cr2 .cr3 .nef .arw": "a format that is not read: save it as PNG or JPEG",
    ".psd .psb .ora .pptx .zip": "layers, which {export} reads: to decompose it, save it flat as PNG",
    ".pdf .svg .ai .eps": "no pixels: save it as PNG",
    ".mp4 .mov .avi .mkv .webm": "a film: save a picture of it as PNG",
}
"""What files are that are not read, by their suffixes, and what to do; {export} is the command."""
NAMED = 5
"""Maximum number of skipped files that are named for each reason."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputImage:
    """One picture file to decompose.

    Attributes:
      path: path of the file as given by the user.
      sha256: SHA-256 of the file's bytes.
      size: width and height in pixels.
      prompt: content of the text file beside the picture, or its caption; None if there is neither.
      caption: the caption and how the model wrote it; None if it did not.
      profile: ICC profile of its colours, as `rgb_profile` gives it.
      notes: what reading changed, in words.
      kept: decoded picture; None if it exceeded the memory budget.
    """

    path: Path
    sha256: str
    size: tuple[int, int]
    prompt: str | None = None
    caption: Mapping[str, Any] | None = None
    profile: bytes = dataclasses.field(default=SRGB, repr=False)
    notes: tuple[str, ...] = ()
    kept: Picture | None = dataclasses.field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, path: Path, data: bytes, picture: Picture, *, prompt: str | None = None, keep: bool) -> "InputImage":
        """The input of a file and what was decoded of it."""
        return cls(
            path=path,
            sha256=hashlib.sha256(data).hexdigest(),
            size=picture.image.size,
            prompt=prompt,
            profile=picture.profile,
            notes=picture.notes,
            kept=picture if keep else None,
        )

    def image(self) -> Image.Image:
        """The picture as 8-bit RGBA in sRGB.

        Raises:
          ImageError: as `own` does.
        """
        return self.own().in_srgb()

    def own(self) -> Picture:
        """The picture as 8-bit RGBA with its own colours.

        Raises:
          ImageError: if the file has changed since it was found.
        """
        if self.kept is not None:
            return self.kept
        data = read_bytes(self.path)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise ImageError(f"{self.path}: was changed while the program ran; start it again")
        return decode_image(data, str(self.path), resolution=LARGEST_SIDE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """The input pictures of a run.

    Attributes:
      pictures: pictures that can be decomposed, by the name of their result.
      problems: messages about inputs that are missing or hold no pictures.
      bad: a line for each file that cannot be decomposed, with the reason.
      beside: a line for each folder that holds other files than pictures and their prompts, with the reasons.
    """

    pictures: dict[str, InputImage]
    problems: list[str]
    bad: list[str]
    beside: list[str]

    def notes(self) -> list[str]:
        """A line for each thing that reading changed, with the pictures that it changed."""
        files: dict[str, list[str]] = {}
        for picture in self.pictures.values():
            for note in picture.notes:
                files.setdefault(note, []).append(picture.path.name)
        return [f"{_some(names)}: {note}" for note, names in files.items()]


def find_pictures(
    inputs: Sequence[Path],
    *,
    resolution: int = RESOLUTION,
    on_picture: Callable[[int, int], None] | None = None,
) -> Found:
    """Collect each picture of the given files and folders once (sorted, not recursive, without hidden files).

    Args:
      inputs: picture files, and folders of them.
      resolution: side in pixels of the size bucket to which each picture must be resizable.
      on_picture: callback with (number of files read, number of files).

    Returns:
      The pictures by file name without suffix, numbered where names clash; a file's number does not depend on the
      validity of other files.
    """
    problems, beside = [], []
    sources: dict[Path, Path] = {}
    for path in inputs:
        try:
            found, others = ([path], []) if path.is_file() else _inside(path)
        except OSError as error:
            problems.append(f"{path}: cannot be read ({error.strerror}); see to its permissions")
            continue
        there = _with_reasons(others)
        if not found:
            what = f"holds no pictures ({', '.join(SUFFIXES)})" if path.is_dir() else "no such file or folder"
            problems.append(f"{path}: {what}{', but ' if others else ''}{there}")
        elif others:
            beside.append(f"{path}: skipped {there}")
        for source in found:
            sources.setdefault(source.resolve(), source)
    pictures, bad, kept = {}, [], 0
    for i, (name, source) in enumerate(_named(list(sources.values())).items(), start=1):
        try:
            pictures[name] = _opened(source, resolution, keep=kept < KEPT_BYTES)
            width, height = pictures[name].size
            kept += 4 * width * height
        except ImageError as error:
            reason = _unread(source)
            bad.append(str(error) if reason == NO_PICTURE else f"{source}: {reason}")
        if on_picture is not None:
            on_picture(i, len(sources))
    return Found(pictures=pictures, problems=problems, bad=bad, beside=beside)


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures of a folder, and its other files but for prompts."""
    if not folder.is_dir():
        return [], []
    files = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES]
    return pictures, [path for path in files if path.suffix.lower() not in (*SUFFIXES, PROMPT)]


def _unread(file: Path) -> str:
    """Why a file is not read, by its suffix."""
    suffix = file.suffix.lower()
    reason = next((reason for suffixes, reason in UNREAD.items() if suffix in suffixes.split()), NO_PICTURE)
    return reason.format(export=called("export"))


def _with_reasons(files: Sequence[Path]) -> str:
    """The names of files by the reasons for which they are not read."""
    names: dict[str, list[str]] = {}
    for file in files:
        names.setdefault(_unread(file), []).append(file.name)
    return "; ".join(f"{_some(files)} ({reason})" for reason, files in names.items())


def _some(names: Sequence[str]) -> str:
    """The first names, and how many there are more."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _named(sources: Sequence[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    taken = set()
    for source in sources:
        name = stem = safe_name(source.stem, "picture")
        number = 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.lower())
        named[name] = source
    return named


def _opened(source: Path, resolution: int, *, keep: bool) -> InputImage:
    data = read_bytes(source)
    picture = decode_image(data, str(source), resolution=resolution)
    return InputImage.of(source, data, picture, prompt=_prompt_beside(source), keep=keep)


def _prompt_beside(source: Path) -> str | None:
    file = source.with_suffix(PROMPT)
    try:
        found = text_beside(source, PROMPT)
    except QilError as error:
        raise ImageError(f"{file}: the prompt of {source.name} is no UTF-8 text ({error}); mend or move it") from error
    if found is None:
        return None
    text = found.strip()
    if len(text) > LONGEST_TEXT:
        raise ImageError(f"{file}: {len(text)} characters, a prompt has at most {LONGEST_TEXT}; shorten or move it")
    return text
