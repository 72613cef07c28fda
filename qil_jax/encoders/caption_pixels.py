"""Pictures as patches for the vision tower, as transformers' Qwen2VLImageProcessorPil cuts them (specification, 5)."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from qil_jax.errors import QilError, shown
from qil_jax.models.config import ConfigError, Size, require_none
from qil_jax.options import Number, read_fields
from qil_jax.weights.strict import COPY, WeightsError, read_json

FILE = Path("processor") / "preprocessor_config.json"
MOST_ASPECT = 200
"""The largest ratio of a picture's sides that the released processor accepts."""
FIXED = {"do_convert_rgb": True, "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
"""Keys of which only the released value is supported; resample 3 is bicubic."""


class CaptionPixelsError(QilError):
    """A picture that the vision tower cannot be shown. The message says why, and the fix."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """Keys of processor/preprocessor_config.json, with the released values where the file lacks them.

    Attributes:
      patch_size: side of a patch in pixels.
      temporal_patch_size: number of frames of a patch; a still picture is repeated.
      merge_size: number of patches that become one token along each side.
      min_pixels: smaller pictures are enlarged to this many pixels.
      max_pixels: larger pictures are reduced to this many pixels.
      rescale_factor: factor of the 8-bit values before they are normalised.
      image_mean, image_std: mean and standard deviation of the rescaled values, by channel.
    """

    patch_size: Size = 14
    temporal_patch_size: Size = 2
    merge_size: Size = 2
    min_pixels: Size = 56 * 56
    max_pixels: Size = 28 * 28 * 16384
    rescale_factor: Number = 1 / 255
    image_mean: tuple[Number, Number, Number] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[Number, Number, Number] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def of(cls, checkpoint: Path) -> "PixelConfig":
        """Read the config of a checkpoint; the release's, if the folder has none.

        Raises:
          ConfigError: if the file is damaged, or asks for something else than the released processor's steps.
        """
        file = checkpoint / FILE
        if not file.is_file():
            return cls()
        try:
            return cls.from_json(read_json(file, fix=COPY), str(file))
        except WeightsError as error:
            raise ConfigError(error.problems[0]) from error

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = str(FILE)) -> "PixelConfig":
        """Parse the JSON; newer files give the pixel limits as `size`, with `shortest_edge` and `longest_edge`.

        Raises:
          ConfigError: if values have a wrong type or are not supported; all are listed.
        """
        problems = [
            f"{key} = {shown(values[key])} is not supported (only {supported!r})"
            for key, supported in FIXED.items()
            if values.get(key, supported) != supported
        ]
        size = values.get("size") or {}
        if not isinstance(size, Mapping):
            problems.append(f"size = {shown(size)}: must be an object")
            size = {}
        edges = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
        said = {key: value for given in (edges, size, values) for key, value in given.items() if value is not None}
        found = read_fields(cls, said, problems)
        require_none(problems, where)
        config = cls(**found)
        if config.min_pixels > config.max_pixels:
            problems.append(f"min_pixels {config.min_pixels} is above max_pixels {config.max_pixels}")
        if not (min(config.image_std) > 0 and config.rescale_factor > 0):
            problems.append("image_std and rescale_factor must be above 0")
        require_none(problems, where)
        return config

    @property
    def channels(self) -> int:
        """Number of values of a patch."""
        return len(self.image_mean) * self.temporal_patch_size * self.patch_size**2


def caption_grid(size: tuple[int, int], config: PixelConfig) -> tuple[int, int]:
    """Height and width in patches of a picture of `size`, width and height in pixels, both multiples of `merge_size`.

    Raises:
      CaptionPixelsError: if the picture is too narrow or flat.
    """
    width, height = size
    if max(size) > MOST_ASPECT * min(size):
        raise CaptionPixelsError(
            f"{width}x{height} pixels cannot be captioned, an aspect ratio of at most {MOST_ASPECT}:1 can: "
            "give the picture a prompt, or crop or pad it"
        )
    unit = config.patch_size * config.merge_size
    high, wide = (round(side / unit) for side in (height, width))
    if high * wide * unit**2 > config.max_pixels:
        shrink = math.sqrt(height * width / config.max_pixels)
        high, wide = (max(1, math.floor(side / shrink / unit)) for side in (height, width))
    elif high * wide * unit**2 < config.min_pixels:
        grow = math.sqrt(config.min_pixels / (height * width))
        high, wide = (math.ceil(side * grow / unit) for side in (height, width))
    return high * config.merge_size, wide * config.merge_size


def caption_patches(image: Image.Image, config: PixelConfig) -> tuple[Float32[np.ndarray, "n c"], tuple[int, int]]:
    """The patches of a picture, those that become one token together, and its height and width in patches.

    Pictures of any mode become 8-bit RGB as Pillow converts them, with alpha over white. A patch lists its values by
    channel, frame, row and column.

    Raises:
      CaptionPixelsError: if the picture is too narrow or flat.
    """
    high, wide = caption_grid(image.size, config)
    side, merge = config.patch_size, config.merge_size
    resized = _over_white(image).resize((wide * side, high * side), Image.Resampling.BICUBIC)
    pixels = (np.asarray(resized, np.float64) * config.rescale_factor).astype(np.float32)
    pixels = (pixels - np.array(config.image_mean, np.float32)) / np.array(config.image_std, np.float32)
    split = pixels.reshape(high // merge, merge, side, wide // merge, merge, side, -1)
    blocks = split.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
    return np.repeat(blocks, config.temporal_patch_size, 5).reshape(high * wide, config.channels), (high, wide)


def _over_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
