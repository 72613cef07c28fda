"""Captions of a run's pictures that have no prompt, in batches, each kept as soon as it is written.

Several processes write each batch together. Process 0 alone reads and writes files, and the others learn from it what
they hold.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from PIL import Image

from qil_jax.choices import CaptionLanguage
from qil_jax.encoders.caption_pixels import CaptionPixelsError, PixelConfig, caption_grid
from qil_jax.encoders.caption_prompts import CaptionStyle
from qil_jax.encoders.caption_writer import CaptionWriter
from qil_jax.inference.captions import CaptionStore
from qil_jax.inference.images import bucket_size, preprocess
from qil_jax.inference.job import JobError
from qil_jax.inference.pictures import InputImage
from qil_jax.mesh import of_first

Pictures = Mapping[str, InputImage]
"""Pictures by the names of their results."""
OnCaption = Callable[[str, str], None]
"""A callback with a picture's name and its caption, as soon as it is kept."""


def captions_of(
    images: Sequence[Image.Image],
    writer: CaptionWriter,
    *,
    resolution: int,
    language: CaptionLanguage,
    style: CaptionStyle = CaptionStyle.UNBROKEN,
    batch: int,
) -> list[str]:
    """Captions of pictures, each shown in its size bucket of `resolution`; see `Pipeline.captions`."""
    shown = [Image.fromarray(preprocess(image, resolution)[0]) for image in images]
    groups = [shown[start : start + batch] for start in range(0, len(shown), batch)]
    return [text for group in groups for text in writer.write(group, language=language, style=style)]


def without_prompt(pictures: Pictures) -> dict[str, InputImage]:
    """The pictures that have no prompt."""
    return {name: picture for name, picture in pictures.items() if picture.prompt is None}


def kept_captions(pictures: Pictures, store: CaptionStore, written_by: Mapping[str, Any]) -> dict[str, InputImage]:
    """All pictures; those without a prompt have their kept caption, if any. All processes must call this function.

    `written_by` describes the captions in the records of results.
    """
    wanted = without_prompt(pictures)
    found = {}
    if jax.process_index() == 0:
        found = {name: store.read(name, picture) for name, picture in wanted.items()}
    return _with({name: text for name, text in of_first(found).items() if text is not None}, pictures, written_by)


def require_captionable(pictures: Pictures, config: PixelConfig, resolution: int) -> None:
    """Refuse pictures that the vision tower cannot be shown.

    Raises:
      JobError: naming each of them.
    """
    problems = []
    for picture in pictures.values():
        try:
            caption_grid(bucket_size(*picture.size, resolution), config)
        except CaptionPixelsError as error:
            problems.append(f"{picture.path}: {error}")
    if problems:
        raise JobError(problems)


def write_captions(
    pictures: Pictures,
    store: CaptionStore,
    write: Callable[[Sequence[Image.Image]], list[str]],
    *,
    written_by: Mapping[str, Any],
    batch: int,
    on_caption: OnCaption | None = None,
) -> dict[str, InputImage]:
    """All pictures; those without a prompt are captioned, equal files once. All processes must call this function.

    Args:
      pictures: the run's pictures by the names of their results.
      store: files of captions.
      write: function that returns captions of a batch.
      written_by: the description of the captions in the records of results.
      batch: number of pictures at once.
      on_caption: callback after every caption.
    """
    captions: dict[str, str] = {}
    for some in _batches(without_prompt(pictures), batch):
        texts = write([pictures[names[0]].image() for names in some])
        kept = {}
        if jax.process_index() == 0:
            pairs = [(name, text) for names, text in zip(some, texts, strict=True) for name in names]
            kept = {name: store.keep(name, pictures[name], text) for name, text in pairs}
        for name, text in of_first(kept).items():
            captions[name] = text
            if on_caption is not None:
                on_caption(name, text)
    return _with(captions, pictures, written_by)


def compile_captions(
    pictures: Pictures, writer: CaptionWriter, *, resolution: int, language: CaptionLanguage, batch: int
) -> int:
    """Compile and let the cache keep what captions of the pictures without a prompt need; the number of programs."""
    shapes = {}
    for some in _batches(without_prompt(pictures), batch):
        sizes = [bucket_size(*pictures[names[0]].size, resolution) for names in some]
        shapes[len(sizes), max(math.prod(caption_grid(size, writer.config.pixels)) for size in sizes)] = sizes
    return sum(len(writer.compile(sizes, language=language)) for sizes in shapes.values())


def written_by_model(language: CaptionLanguage) -> dict[str, str]:
    """What a record says of a caption by the checkpoint, beside its text."""
    return {"written_by": "the checkpoint", "language": str(language), "style": str(CaptionStyle.UNBROKEN)}


def _batches(pictures: Pictures, batch: int) -> list[list[list[str]]]:
    """Names of pictures in batches, those of equal files in one place, similar sizes together: fewer programs."""
    alike: dict[str, list[str]] = {}
    for name, picture in pictures.items():
        alike.setdefault(picture.sha256, []).append(name)
    ordered = sorted(alike.values(), key=lambda names: pictures[names[0]].size)
    return [ordered[start : start + batch] for start in range(0, len(ordered), batch)]


def _with(captions: Mapping[str, str], pictures: Pictures, written_by: Mapping[str, Any]) -> dict[str, InputImage]:
    return {
        name: dataclasses.replace(picture, prompt=captions[name], caption={**written_by, "text": captions[name]})
        if name in captions
        else picture
        for name, picture in pictures.items()
    }
