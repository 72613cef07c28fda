"""At which size a record is seen, and how many pictures of that size one row of a batch holds.

Programs are compiled for fixed shapes, so every record goes to one of few buckets: a resolution times an aspect ratio.
All pictures of a sample share the bucket's size. A row holds as many of them as the token budget allows.
"""

import dataclasses

import numpy as np
from jaxtyping import Int

from qil_jax.errors import QilError
from qil_jax.layers.resize import sides

ASPECT_RATIOS = ((1, 1), (2, 3), (3, 2), (3, 4), (4, 3), (9, 16), (16, 9), (1, 3), (3, 1))
"""Width to height: those that Qwen-Image was pre-trained at (paper.md 3.2)."""
ENLARGED = 1.1
"""By how much a record's area may grow for the next resolution: rounding to `multiple` alone may take it there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BucketConfig:
    """Which sizes there are.

    Attributes:
      resolutions: square roots of pixels. A record takes the largest that does not enlarge it and at which its pictures
        fit into a row, or else the smallest.
      aspect_ratios: (width, height). A record takes the nearest and is cropped to it.
      multiple: of both sides in pixels; the release uses 32, and 16 is the least that the model can do.
      token_pixels: side of the square that one token covers (VAE 8 times patch 2).
      row_tokens: image tokens that a row may hold: the budget of memory and compute.

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
    """A size in pixels, and how many pictures of it the budget of a row allows."""

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
      pictures: how many each needs in a row.
      least: how many a sample of one layer needs: records of more layers can be merged down to it.

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
