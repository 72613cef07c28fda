"""The pictures of a run: files and folders found, decoded and checked before any compute."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from qil_jax.errors import QilError
from qil_jax.export.names import safe_name
from qil_jax.files import text_beside
from qil_jax.inference.images import LARGEST_SIDE, RESOLUTION, SUFFIXES, ImageError, decode_image, read_bytes

PROMPT = ".txt"
"""A file of a picture's name with this ending holds its prompt."""
LONGEST_PROMPT = 20_000
KEPT_BYTES = 1 << 30
"""Decoded pictures up to so many bytes together stay in memory; those beyond are decoded again when needed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputImage:
    """One file to decompose.

    Attributes:
      path: as it was given.
      sha256: of the file's bytes.
      size: width and height in pixels.
      prompt: from the text file beside it; None where there is none.
      kept: the decoded picture, where memory allowed.
    """

    path: Path
    sha256: str
    size: tuple[int, int]
    prompt: str | None = None
    kept: Image.Image | None = dataclasses.field(default=None, repr=False, compare=False)

    def image(self) -> Image.Image:
        """The picture as 8-bit RGBA.

        Raises:
          ImageError: if the file is no longer what it was.
        """
        if self.kept is not None:
            return self.kept
        data = read_bytes(self.path)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise ImageError(f"{self.path}: was changed while the program ran; start it again")
        return decode_image(data, str(self.path), resolution=LARGEST_SIDE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """The pictures that a run was given.

    Attributes:
      pictures: those that can be decomposed, by the name of their result.
      problems: what is wrong with the inputs themselves.
      bad: files that are no picture that can be decomposed, each with the reason.
    """

    pictures: dict[str, InputImage]
    problems: list[str]
    bad: list[str]


def find_pictures(
    inputs: Sequence[Path],
    *,
    resolution: int = RESOLUTION,
    on_picture: Callable[[int, int], None] | None = None,
) -> Found:
    """Every picture of the given files and folders (sorted, not recursive, hidden files left out), once each.

    Args:
      inputs: files and folders.
      resolution: size bucket that each picture must have.
      on_picture: called with (files seen, files).

    Returns:
      The pictures by their file names without ending, numbered where those clash; a file keeps its number whatever is
      wrong with others.
    """
    problems: list[str] = []
    sources: dict[Path, Path] = {}
    for path in inputs:
        try:
            found = [path] if path.is_file() else _inside(path)
        except OSError as error:
            problems.append(f"{path}: cannot be read ({error.strerror}); see to its permissions")
            continue
        if not found:
            what = f"holds no pictures ({', '.join(SUFFIXES)})" if path.is_dir() else "no such file or folder"
            problems.append(f"{path}: {what}")
        for source in found:
            sources.setdefault(source.resolve(), source)
    pictures, bad, kept = {}, [], 0
    for i, (name, source) in enumerate(_named(list(sources.values())).items(), start=1):
        try:
            pictures[name] = _opened(source, resolution, keep=kept < KEPT_BYTES)
            width, height = pictures[name].size
            kept += 4 * width * height
        except ImageError as error:
            bad.append(str(error))
        if on_picture is not None:
            on_picture(i, len(sources))
    return Found(pictures=pictures, problems=problems, bad=bad)


def _inside(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in files if path.is_file())


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
    image = decode_image(data, str(source), resolution=resolution)
    return InputImage(
        path=source,
        sha256=hashlib.sha256(data).hexdigest(),
        size=image.size,
        prompt=_prompt_beside(source),
        kept=image if keep else None,
    )


def _prompt_beside(source: Path) -> str | None:
    file = source.with_suffix(PROMPT)
    if not file.is_file():
        return None
    try:
        text = (text_beside(source, PROMPT) or "").strip()
    except QilError as error:
        raise ImageError(f"{file}: the prompt of {source.name} is no UTF-8 text ({error}); mend or move it") from error
    if len(text) > LONGEST_PROMPT:
        raise ImageError(f"{file}: {len(text)} characters, a prompt has at most {LONGEST_PROMPT}; shorten or move it")
    return text
