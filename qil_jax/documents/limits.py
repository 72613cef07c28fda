"""What documents must keep to. Imports nothing heavy, so that command lines can show the defaults."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class PSDLimits:
    """What a document must keep to.

    Attributes:
      pixels: of its canvas.
      recomposition_psnr: dB that the layers' composite must reach against psd-tools' composite or the stored picture.
      stored_psnr: dB that it must reach against the stored picture, if there is one: below it psd-tools has drawn
        another picture altogether.
      repaired: share of visible pixels above which a group is kept as one flat layer instead of its repaired parts.
    """

    pixels: int = 64_000_000
    recomposition_psnr: float = 40.0
    stored_psnr: float = 10.0
    repaired: float = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """Thresholds of the rules.

    Attributes:
      contribution: a layer is dropped if taking it away changes no value of the composite by more than this, of 1.
      min_side: of the canvas, in pixels.
      min_layers: after cleaning and merging.
      max_layers: more are merged down to this.
      min_deviation: standard deviation of the composite over white, of 255; below it the document is flat.
    """

    contribution: float = 1e-4
    min_side: int = 32
    min_layers: int = 2
    max_layers: int = 20
    min_deviation: float = 2.0
