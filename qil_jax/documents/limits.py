"""Limits and thresholds for documents. Imports nothing heavy, so that command lines can show the defaults."""

import dataclasses
from enum import StrEnum


@dataclasses.dataclass(frozen=True, kw_only=True)
class PSDLimits:
    """Limits that a document must respect to be read.

    Attributes:
      pixels: maximum number of pixels of the canvas.
      max_alloc_bytes: maximum number of bytes that psd-tools may allocate for one image, by its own estimate.
      recomposition_psnr: PSNR in dB that the layers' composite must reach against psd-tools' composite or the stored
        image.
      stored_psnr: PSNR in dB that the layers' composite must reach against the stored image, if there is one; below it
        psd-tools does not render the document correctly, or layers or image are damaged.
      thumbnail_psnr: PSNR in dB against the stored thumbnail, both at 32 pixels, below which a note says that they
        differ.
      repaired: share of repaired visible pixels, in [0, 1], above which a group is kept as one flat layer instead of
        its repaired layers.
    """

    pixels: int = 64_000_000
    max_alloc_bytes: int = 2 << 30
    recomposition_psnr: float = 40.0
    stored_psnr: float = 30.0
    thumbnail_psnr: float = 25.0
    repaired: float = 0.2


class Merging(StrEnum):
    """Which layers become one, beside those beyond the maximum number."""

    DEPTH = "depth"  # those of one depth, which never overlap
    NONE = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """Thresholds of the cleaning rules.

    Attributes:
      contribution: a layer is dropped if the composite without it differs by no more than this, in values from 0 to 1.
      merging: which layers are merged; those that remain keep their order.
      min_layer_pixels: a layer of which fewer pixels are visible is merged into the one below it. The default is one
        latent of the VAE, 8 x 8 pixels.
      min_side: minimum width and height of the canvas, in pixels.
      min_layers: minimum number of layers after cleaning and merging.
      max_layers: maximum number of layers; those of documents with more are merged.
      min_deviation: minimum standard deviation of the composite over white, in values from 0 to 255; documents below
        it are dropped as flat.
    """

    contribution: float = 1e-4
    merging: Merging = Merging.DEPTH
    min_layer_pixels: int = 64
    min_side: int = 32
    min_layers: int = 2
    max_layers: int = 20
    min_deviation: float = 2.0
