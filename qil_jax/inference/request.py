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
from qil_jax.inference.images import ImageError, check_size
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.limits import MAX_LAYERS, MAX_SEED, integer_problems, resolution_problems

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
    first_sample: int = 0  # number of the first of the samples: each has noise of its own, whatever is asked beside it
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
        found = integer_problems("max_layers", self.max_layers, least=1)
        if self.layers is not None and not found:
            problems = integer_problems("layers", self.layers, least=1, most=self.max_layers)
            beyond = problems and isinstance(self.layers, int) and self.layers > self.max_layers
            hint = f" (the model saw at most {MAX_LAYERS}; raise max_layers to go beyond)" if beyond else ""
            found += [problem + hint for problem in problems]
        found += self._picture_problems()
        found += [] if isinstance(self.prompt, str) else [f"prompt must be text, got {self.prompt!r}"]
        if not (self.negative_prompt is None or isinstance(self.negative_prompt, str)):
            found.append(f"negative_prompt must be text or None, got {self.negative_prompt!r}")
        found += integer_problems("seed", self.seed, least=0, most=MAX_SEED)
        found += integer_problems("samples", self.samples, least=1)
        found += integer_problems("first_sample", self.first_sample, least=0)
        return found

    def _picture_problems(self) -> list[str]:
        if not isinstance(self.image, Image.Image):
            return [f"image must be a PIL image, got {type(self.image).__name__}: open it with PIL.Image.open"]
        if self.resolution is None:
            return []
        found = resolution_problems("resolution", self.resolution)
        if not found:
            try:
                check_size(self.image.size, "image", self.resolution)
            except ImageError as error:
                found.append(str(error))
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
        found = [] if self.steps is None else integer_problems("steps", self.steps, least=1)
        number = isinstance(self.guidance, int | float) and not isinstance(self.guidance, bool)
        if self.guidance is not None and not (number and math.isfinite(self.guidance)):
            found.append(f"guidance must be a finite number, got {self.guidance!r}")
        if not isinstance(self.rescale, Rescale):
            found.append(f"rescale must be one of {', '.join(map(str, Rescale))} of qil_jax.flow, got {self.rescale!r}")
        found += integer_problems("max_prompt_tokens", self.max_prompt_tokens, least=1)
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
