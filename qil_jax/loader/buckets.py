"""Buckets: image sizes of training samples, each with the number of images of that size that one row of a batch holds.

Programs are compiled for fixed shapes, so every record goes to one of few buckets: a resolution times an aspect ratio.
All images of a sample have the bucket's size. A row holds as many of them as its token budget allows.
"""

import dataclasses

import numpy as np
from jaxtyping import Int

from qil_jax.errors import QilError
from qil_jax.layers.resize import sides

ASPECT_RATIOS = ((1, 1), (2, 3), (3, 2), (3, 4), (4, 3), (9, 16), (16, 9), (1, 3), (3, 1))
"""Width to height: the ratios of Qwen-Image's pre-training (arXiv 2508.02324, section 4.1.3)."""
ENLARGED = 1.1
"""Factor by which a record's area may grow at a larger resolution: rounding to `multiple` alone may enlarge it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BucketConfig:
    """Settings of the image sizes and of the capacity of rows.

    Attributes:
      resolutions: square roots of the number of pixels. A record takes the largest that does not enlarge it and at
        which its images fit into a row, or else the smallest.
      aspect_ratios: pairs (width, height). A record takes the nearest ratio and is cropped to it.
      multiple: number of pixels of which both sides are multiples, itself a multiple of `token_pixels`; the released
        model uses 32.
      token_pixels: side in pixels of the square that one token covers (VAE 8 times patch 2).
      row_tokens: maximum number of image tokens of a row, which bounds memory and compute.

    Raises:
      QilError: naming the field that does not fit.
    """

    resolutions: tuple[int, ...] = (640,)
    aspect_ratios: tuple[tuple[int, int], ...] = ASPECT_RATIOS
    multiple: int = 32
    token_pixels: int = 16
    row_tokens: int = 24 * 1600

    def __post_init__(self) -> None:
        if not self.resolutions or not self.aspect_ratios:
            raise QilError("BucketConfig: resolutions and aspect_ratios must not be empty")
        if min(min(ratio) for ratio in self.aspect_ratios) <= 0:
            raise QilError(f"BucketConfig: aspect_ratios {self.aspect_ratios} must be pairs of positive numbers")
        if self.token_pixels < 1 or self.multiple < 1 or self.multiple % self.token_pixels:
            raise QilError(f"BucketConfig: multiple {self.multiple} must be a multiple of {self.token_pixels} pixels")
        for resolution in self.resolutions:
            for ratio in self.aspect_ratios:
                if 0 in sides(ratio[0] / ratio[1], resolution, self.multiple):
                    raise QilError(
                        f"BucketConfig: {resolution} pixels at {ratio[0]}:{ratio[1]} have a side below half of "
                        f"{self.multiple}: take out the ratio, or lower `multiple`"
                    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucket:
    """An image size, with the capacity of a row at this size.

    Attributes:
      width: width of the images in pixels.
      height: height of the images in pixels.
      room: number of images of this size that the token budget of a row allows.
    """

    width: int
    height: int
    room: int


def bucket(ratio: tuple[int, int], resolution: int, config: BucketConfig) -> Bucket:
    """The bucket of an aspect ratio at a resolution."""
    width, height = sides(ratio[0] / ratio[1], resolution, config.multiple)
    tokens = (width // config.token_pixels) * (height // config.token_pixels)
    return Bucket(width=width, height=height, room=config.row_tokens // tokens)


def assign(
    sizes: Int[np.ndarray, "n 2"], pictures: Int[np.ndarray, " n"], config: BucketConfig, *, least: int
) -> list[Bucket]:
    """The bucket of each record.

    Args:
      sizes: width and height of each record in pixels.
      pictures: number of images that each record's sample has.
      least: number of images of a sample with one layer, to which records of more layers can be merged.

    Raises:
      QilError: if a bucket that is needed has no room for `least` pictures.
    """
    ratios = np.log([width / height for width, height in config.aspect_ratios])
    nearest = np.abs(ratios - np.log(sizes[:, :1] / sizes[:, 1:])).argmin(axis=1)
    ladder = {
        ratio: [bucket(config.aspect_ratios[ratio], resolution, config) for resolution in sorted(config.resolutions)]
        for ratio in np.unique(nearest).tolist()
    }
    chosen = []
    for ratio, (width, height), need in zip(nearest.tolist(), sizes.tolist(), pictures.tolist(), strict=True):
        smallest, *larger = ladder[ratio]
        fitting = [b for b in larger if b.room >= need and b.width * b.height <= ENLARGED * width * height]
        chosen.append(fitting[-1] if fitting else smallest)
    for b in dict.fromkeys(chosen):
        if b.room < least:
            raise QilError(
                f"row_tokens {config.row_tokens} hold {b.room} pictures of {b.width} x {b.height}, but a sample of one "
                f"layer has {least}: raise row_tokens or lower the resolution"
            )
    return chosen
