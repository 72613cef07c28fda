"""One pipeline for many clients: one decomposition at a time, stopped at the next step when nobody waits for it."""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from qil_jax.app.limits import Limits
from qil_jax.app.uploads import opened
from qil_jax.choices import CaptionLanguage, OutputSize
from qil_jax.errors import QilError
from qil_jax.export.names import safe_name
from qil_jax.inference.caption_job import written_by_model
from qil_jax.inference.images import bucket_size
from qil_jax.inference.job import most_layers, plan_results, run_job
from qil_jax.inference.pictures import InputImage
from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import (
    Decomposition,
    OnStep,
    Request,
    ResolvedOptions,
    ResolvedSettings,
    Settings,
    result_settings,
)

MOST_SHAPES = 64
"""Kinds of jobs whose compiled programs stay in memory; at the next one, all are dropped."""
POLL = 0.1
"""Seconds between two looks at whether a client that waits for its turn still wants it."""


class StoppedError(QilError):
    """A decomposition was stopped since nobody waits for it."""


@dataclasses.dataclass(frozen=True)
class Watched:
    """A pipeline all of whose decompositions report their steps, those of recursion included."""

    pipeline: Pipeline
    on_step: OnStep

    def decompose(
        self, requests: Sequence[Request], settings: Settings = Settings(), *, on_step: OnStep | None = None
    ) -> list[Decomposition]:
        """Decompose a batch; `on_step` is not called."""
        return self.pipeline.decompose(requests, settings, on_step=self.on_step)


class Engine:
    """A pipeline that threads share.

    Attributes:
      pipeline: the loaded checkpoint.
      limits: what is decoded.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits):
        self.pipeline, self.limits = pipeline, limits
        checkpoint = pipeline.checkpoint
        self._identity = {"folder": checkpoint.folder.resolve().name, "fingerprint": checkpoint.fingerprint()}
        self._turn, self._shapes = threading.Lock(), set[Any]()

    def decompose(
        self,
        upload: Path,
        folder: Path,
        options: ResolvedOptions,
        settings: ResolvedSettings,
        *,
        on_step: OnStep,
        is_wanted: Callable[[], bool],
    ) -> Path:
        """Decompose an uploaded picture as `qil decompose` does, and write its result.

        Args:
          upload: picture file.
          folder: folder in which the result's folder is made, with the picture's name.
          options: what is asked for, with the checkpoint's defaults.
          settings: sampler settings, with the checkpoint's defaults.
          on_step: callback with (steps done, steps), called for every decomposition of a recursion.
          is_wanted: asked before every step whether to go on.

        Returns:
          The result's folder.

        Raises:
          ImageError: if the upload cannot be used; before any compute.
          QilError: if the options do not fit the picture, the checkpoint or the memory; before any compute.
          StoppedError: if nobody waits any more.
        """

        def step(done: int, steps: int) -> None:
            _require(is_wanted)
            on_step(done, steps)

        with self._own_turn(is_wanted):
            picture = opened(upload, self.limits, resolution=options.resolution)
            _require_pixels(picture, options, self.limits)
            self._forget(picture.size, options)
            planned = plan_results(
                {safe_name(Path(picture.path).stem, "picture"): self._prompted(picture, options)},
                folder,
                options,
                checkpoint=self._identity,
                settings=result_settings(options, settings, None),
            )
            watched = Watched(self.pipeline, step)
            (written,) = run_job(planned, watched, settings, batch=1, overwrite=False, on_step=step)
        return written.planned.folder

    def _prompted(self, picture: InputImage, options: ResolvedOptions) -> InputImage:
        """The picture with its prompt: a caption if none is given, or an empty one if the checkpoint cannot caption."""
        if options.prompt is not None:
            return picture
        if not self.pipeline.checkpoint.has_vision:
            return dataclasses.replace(picture, prompt="")
        language: CaptionLanguage = options.caption_language
        (text,) = self.pipeline.captions([picture.image()], resolution=options.resolution, language=language)
        return dataclasses.replace(picture, prompt=text, caption={**written_by_model(language), "text": text})

    @contextmanager
    def _own_turn(self, is_wanted: Callable[[], bool]) -> Iterator[None]:
        """The pipeline for one thread, once the others are done.

        The app's queue admits one call at a time, but a call that was cancelled ends only at its next step.
        """
        while not self._turn.acquire(timeout=POLL):
            _require(is_wanted)
        try:
            _require(is_wanted)
            yield
        finally:
            self._turn.release()

    def _forget(self, size: tuple[int, int], options: ResolvedOptions) -> None:
        """Drop compiled programs when there are those of many shapes, so that no client fills the memory with them."""
        shape = bucket_size(*size, options.resolution), options.layers, options.depth
        if shape not in self._shapes and len(self._shapes) >= MOST_SHAPES:
            jax.clear_caches()
            self._shapes.clear()
        self._shapes.add(shape)


def _require(is_wanted: Callable[[], bool]) -> None:
    if not is_wanted():
        raise StoppedError("stopped: nobody waits for this decomposition")


def _require_pixels(picture: InputImage, options: ResolvedOptions, limits: Limits) -> None:
    """Refuse results of more pixels than are made here; layers of the model's size are always made."""
    (width, height), count = picture.size, most_layers(options)
    if options.output_size is OutputSize.INPUT and width * height * count > limits.layer_pixels:
        raise QilError(
            f"{picture.path}: up to {count} layers of {width}x{height} pixels, {limits.layer_pixels:,} pixels at most "
            "are made here: ask for fewer layers or a smaller depth, or scale the picture down"
        )
