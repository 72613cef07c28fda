"""Captions of documents by a checkpoint's own vision-language model, on the machine that starts the build."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from qil_jax.compilation_cache import use_compilation_cache
from qil_jax.documents.build import Workplace, composites
from qil_jax.documents.captions import ModelCaptioner
from qil_jax.documents.rows import ReportRow
from qil_jax.encoders.caption_pixels import caption_grid
from qil_jax.encoders.caption_prompts import CaptionLanguage, caption_chat
from qil_jax.encoders.caption_writer import CaptionConfig, CaptionWriter
from qil_jax.errors import QilError, say
from qil_jax.inference.caption_job import captions_of
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.images import bucket_size
from qil_jax.mesh import INFERENCE_RULES, MeshShape, Sharding, make_mesh, single_device_mesh
from qil_jax.weights import Checkpoint


class DocumentCaptions:
    """A checkpoint that captions composites as `qil decompose` captions pictures.

    Attributes:
      captioner: the captioner that reads, in any process, what this one has written.
    """

    def __init__(self, checkpoint: Path, cache: epath.Path, *, batch: int, mesh: str):
        """Check the checkpoint and the mesh; tensors are read when the first caption is written.

        Args:
          checkpoint: folder with text_encoder, tokenizer and processor.
          cache: folder of the captions.
          batch: number of pictures at once.
          mesh: mesh axes and their sizes, such as data=8; empty: the first device.

        Raises:
          QilError: if one of them cannot be used.
        """
        self._checkpoint = Checkpoint(checkpoint)
        try:
            self._config = CaptionConfig.of(self._checkpoint)
        except FileNotFoundError as error:
            raise QilError(str(error)) from error
        self._batch = batch
        grid = make_mesh(MeshShape.parse(mesh)) if mesh else single_device_mesh()
        self._sharding = Sharding(grid, INFERENCE_RULES)
        self._resolution = Defaults.of(checkpoint).resolution
        self._writer: CaptionWriter | None = None
        asked = {
            "checkpoint": self._checkpoint.fingerprint("text_encoder", "tokenizer", "processor"),
            "resolution": self._resolution,
            "chat_sha256": hashlib.sha256(caption_chat().encode()).hexdigest(),
        }
        self.captioner = ModelCaptioner(asked=json.dumps(asked), cache=cache)

    def write(self, rows: Sequence[ReportRow], place: Workplace) -> None:
        """Caption the documents that are kept and have no caption yet."""
        use_compilation_cache()
        total = sum(row.reason is None for row in rows)
        columns = (TextColumn("captioning"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, disable=not sys.stdout.isatty()) as progress:
            bar = progress.add_task("", total=total)
            for done in self.captioner.write(composites(rows, place), self._describe, batch=self._batch):
                progress.update(bar, completed=done)

    def _describe(self, pictures: Sequence[UInt8[np.ndarray, "y x 4"]]) -> list[str]:
        if self._writer is None:
            say(f"loading {self._checkpoint.folder} to caption documents")
            self._writer = CaptionWriter.load(self._checkpoint, sharding=self._sharding)
        images = {i: Image.fromarray(picture) for i, picture in enumerate(pictures) if self._can_show(picture)}
        written = captions_of(
            list(images.values()),
            self._writer,
            resolution=self._resolution,
            language=CaptionLanguage.EN,
            batch=self._batch,
        )
        texts = dict(zip(images, written, strict=True))
        return [texts.get(i, "") for i in range(len(pictures))]

    def _can_show(self, picture: UInt8[np.ndarray, "y x 4"]) -> bool:
        high, wide = picture.shape[:2]
        try:
            caption_grid(bucket_size(wide, high, self._resolution), self._config.pixels)
        except QilError:
            return False
        return True
