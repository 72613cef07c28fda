"""What a caller asks for and what comes back: the nouns of `Pipeline.decompose`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from qil_jax.flow import Rescale
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.images import MULTIPLE, ImageError, check_size
from qil_jax.layered_image import LayeredImage

MAX_LAYERS = 20
"""Most layers seen in training (paper.md 2.6)."""


Value = TypeVar("Value")


def known(value: Value | None) -> Value:
    """A field of a request or of settings that `filled` has seen to."""
    assert value is not None
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One picture to decompose. Every field may differ between the requests of one batch."""

    image: Image.Image
    layers: int | None = None  # None, here and below: what the checkpoint's qil.json says, else the release's default
    prompt: str = ""
    negative_prompt: str | None = " "  # None: no guidance for this picture
    resolution: int | None = None
    seed: int = 777
    samples: int = 1
    latents: Float[np.ndarray, "s l1 h w z"] | None = None
    """Starting noise, (samples, layers + 1, height / 8, width / 8, z), composite first; None: drawn from `seed`."""
    max_layers: int = MAX_LAYERS

    def filled(self, defaults: Defaults) -> "Request":
        """The same with a checkpoint's defaults where nothing is said."""
        return dataclasses.replace(
            self,
            layers=defaults.layers if self.layers is None else self.layers,
            resolution=defaults.resolution if self.resolution is None else self.resolution,
        )

    def problems(self) -> list[str]:
        """Everything that is wrong with this request, in words."""
        found = []
        if self.layers is not None and not 1 <= self.layers <= self.max_layers:
            found.append(
                f"layers must be from 1 to {self.max_layers}, got {self.layers}"
                + (f" (the model saw at most {MAX_LAYERS}; raise max_layers to go beyond)" if self.layers > 1 else "")
            )
        if self.resolution is not None and (self.resolution < MULTIPLE or self.resolution % MULTIPLE):
            found.append(f"resolution must be a multiple of {MULTIPLE}, got {self.resolution}")
        elif self.resolution is not None:
            try:
                check_size(self.image.size, "image", self.resolution)
            except ImageError as error:
                found.append(str(error))
        if self.samples < 1:
            found.append(f"samples must be at least 1, got {self.samples}")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What all pictures of a batch share."""

    steps: int | None = None  # None: as for a request
    guidance: float | None = None  # at most 1: guidance off, one forward pass a step instead of two
    rescale: Rescale = Rescale.NORM
    max_prompt_tokens: int = 512

    def filled(self, defaults: Defaults) -> "Settings":
        """The same with a checkpoint's defaults where nothing is said."""
        return dataclasses.replace(
            self,
            steps=defaults.steps if self.steps is None else self.steps,
            guidance=defaults.guidance if self.guidance is None else self.guidance,
        )

    def problems(self) -> list[str]:
        """Everything that is wrong with these settings, in words."""
        found = []
        if self.steps is not None and self.steps < 1:
            found.append(f"steps must be at least 1, got {self.steps}")
        if self.guidance is not None and not math.isfinite(self.guidance):
            found.append(f"guidance must be a finite number, got {self.guidance}")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decomposition:
    """One sample of one request."""

    layered: LayeredImage
    composite: UInt8[np.ndarray, "y x 4"]  # the model's own picture of the whole, generated beside the layers
    input: UInt8[np.ndarray, "y x 4"]  # the request's picture at the model's size
    latents: Float[np.ndarray, "l1 h w z"]  # normalised, composite first
    timings: Mapping[str, float]  # seconds of the whole batch by phase
    request: Request
    sample: int
