"""Captions of pictures by a checkpoint's own vision-language model (docs/specification.md, 5)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from qil_jax.choices import CaptionLanguage
from qil_jax.encoders.caption_pixels import FILE, PixelConfig, caption_grid, caption_patches
from qil_jax.encoders.caption_prompts import PICTURE, CaptionStyle, caption_chat
from qil_jax.encoders.captioner import Captioner, Programs
from qil_jax.encoders.generation import Generation
from qil_jax.encoders.tokenizer import PromptTokenizer
from qil_jax.mesh import Sharding
from qil_jax.models.config import ConfigError, require_none
from qil_jax.weights import Checkpoint, TextEncoderPart


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """How a checkpoint captions pictures.

    Attributes:
      pixels: how pictures become patches.
      generation: how the ids of a caption are chosen.
    """

    pixels: PixelConfig
    generation: Generation

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "CaptionConfig":
        """Read the configs of a checkpoint, and check that they, its model and its tokenizer belong together.

        Raises:
          ConfigError: if the checkpoint cannot caption pictures, or its files are damaged or do not fit together.
          FileNotFoundError: if it has no tokenizer.
          WeightsError: if files cannot be read.
        """
        tokenizer, folder = PromptTokenizer(checkpoint.tokenizer), checkpoint.folder
        if not checkpoint.has_vision:
            raise ConfigError(
                f"{folder}: its text encoder knows no token of a picture, so it cannot caption: give prompts, or "
                "Qwen-Image-Layered"
            )
        model = checkpoint.text_encoder
        pixels, vision = PixelConfig.of(folder), model.vision
        cut = (pixels.patch_size, pixels.temporal_patch_size, pixels.merge_size)
        read = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
        problems = [f"patch, temporal and merge size {cut} are not {read} of text_encoder/config.json"] * (cut != read)
        ids = tokenizer.chat_ids(PICTURE)
        if len(ids) != 3 or ids[1] != model.image_token_id:
            problems.append(f"the tokenizer reads {PICTURE} as {ids}, text_encoder/config.json: {model.image_token_id}")
        require_none(problems, f"{folder / FILE}")
        return cls(pixels=pixels, generation=Generation.of(folder))


class CaptionWriter:
    """A tokenizer and a vision-language model on a mesh, which write captions of pictures."""

    def __init__(self, tokenizer: PromptTokenizer, config: CaptionConfig, captioner: Captioner):
        self.config, self.captioner = config, captioner
        self._tokenizer = tokenizer

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        sharding: Sharding,
        dtype: str | None = None,
        is_abstract: bool = False,
    ) -> "CaptionWriter":
        """Load what captions need of a checkpoint: text_encoder, tokenizer and processor.

        Args:
          checkpoint: checkpoint, of which nothing else need be there.
          sharding: mesh on which the parameters are placed, and the rules that map logical axes to its axes.
          dtype: dtype of parameters and activations; None: the stored dtype.
          is_abstract: whether parameters are shapes only.

        Raises:
          ConfigError: as `CaptionConfig.of`; raised before any tensor is read.
          FileNotFoundError: if the checkpoint has no tokenizer.
          MeshError: if rules, mesh and shapes are inconsistent; raised before any tensor is read.
          WeightsError: if files cannot be read.
        """
        config = CaptionConfig.of(checkpoint)
        load = checkpoint.abstract if is_abstract else checkpoint.load
        model = load(TextEncoderPart.VISION_LANGUAGE, sharding, dtype=dtype)
        return cls(PromptTokenizer(checkpoint.tokenizer), config, Captioner(model, sharding=sharding))

    @property
    def state(self) -> Any:
        """The parameters, which may be abstract."""
        return self.captioner.state

    def write(
        self,
        images: Sequence[Image.Image],
        *,
        language: CaptionLanguage = CaptionLanguage.EN,
        style: CaptionStyle = CaptionStyle.UNBROKEN,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """A caption of each picture, written as one batch, without special tokens and surrounding spaces.

        Args:
          images: pictures of any mode and size; alpha is shown over white.
          language: the language of the captions.
          style: the line breaks of the instruction.
          seeds: a seed for each picture, which matters only if the checkpoint's generation_config.json asks to sample.

        Raises:
          CaptionPixelsError: if a picture is too narrow or flat.
        """
        cut = [caption_patches(image, self.config.pixels) for image in images]
        chats = [self._tokenizer.chat_ids(caption_chat(language, style))] * len(images)
        patches, grids = [patches for patches, _ in cut], [grid for _, grid in cut]
        written = self.captioner.generate(chats, patches, grids, self.config.generation, seeds=seeds)
        return [self._tokenizer.decode(ids).strip() for ids in written]

    def compile(
        self,
        sizes: Sequence[tuple[int, int]],
        *,
        language: CaptionLanguage = CaptionLanguage.EN,
        style: CaptionStyle = CaptionStyle.UNBROKEN,
    ) -> Programs:
        """The programs of a batch of pictures of these widths and heights; parameters may be abstract."""
        chats = [self._tokenizer.chat_ids(caption_chat(language, style))] * len(sizes)
        grids = [caption_grid(size, self.config.pixels) for size in sizes]
        patches = [np.zeros((rows * columns, self.config.pixels.channels), np.float32) for rows, columns in grids]
        return self.captioner.compile(chats, patches, grids, self.config.generation)
