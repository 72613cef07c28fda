"""What a caller asks for and what comes back: the nouns of `Pipeline.decompose`. Imports nothing heavy."""

import dataclasses
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from qil_jax.inference.defaults import Defaults
from qil_jax.inference.images import ImageError, check_size
from qil_jax.inference.options import Named, deciding, option, option_problems
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.limits import MAX_LAYERS, MAX_SEED, Rescale, resolution_problems

Value = TypeVar("Value")


def known(value: Value | None) -> Value:
    """A field whose default `filled` has put in."""
    assert value is not None
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """What may be asked of a picture, whichever it is.

    Attributes:
      layers: to make; None: the checkpoint's default.
      negative_prompt: what guidance leads away from; None: no guidance for this picture.
      resolution: side of the size bucket in pixels; None: the checkpoint's default.
      seed: of the noise.
      samples: decompositions to make.
      max_layers: upper bound of `layers`; above 20 the model leaves what it was trained with.
    """

    layers: int | None = option(None, int, f"layers to make, 1 to {MAX_LAYERS}", least=1)
    negative_prompt: str | None = option(" ", str, "what guidance leads away from", optional=True)
    resolution: int | None = option(None, int, "size bucket: 640 or 1024 in the release", bucket=True)
    seed: int = option(777, int, f"seed of the noise, 0 to {MAX_SEED}", most=MAX_SEED)
    samples: int = option(1, int, "decompositions per picture", least=1, decides=False)
    max_layers: int = option(
        MAX_LAYERS, int, "allow more layers than the model was trained with", least=1, decides=False
    )

    def problems(self, named: Named = str) -> list[str]:
        """Everything that is wrong with these options, in words."""
        found, layers, most = option_problems(self, named), self.layers, self.max_layers
        if isinstance(layers, int) and isinstance(most, int) and layers > most >= 1:
            hint = f"the model was trained with at most {MAX_LAYERS}, {named('max_layers')} N allows more"
            found.append(f"{named('layers')} must be from 1 to {most}, got {layers}; {hint}")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request(PictureOptions):
    """One picture to decompose. Every field may differ between the requests of one batch.

    Attributes:
      image: of any mode and size.
      prompt: what it shows.
      first_sample: number of the first of the samples: each has noise of its own, whatever is asked beside it.
      latents: starting noise [samples, layers + 1, height / 8, width / 8, z], composite first; None: drawn from `seed`.
    """

    image: Image.Image
    prompt: str = option("", str, "what the picture shows")
    first_sample: int = option(0, int, "number of the first sample", decides=False)
    latents: Float[np.ndarray, "s l1 h w z"] | None = None

    def filled(self, defaults: Defaults) -> "Request":
        """The same with a checkpoint's defaults where nothing is said."""
        return _filled(self, defaults)

    def problems(self, named: Named = str) -> list[str]:
        """Everything that is wrong with this request, in words."""
        found = super().problems(named)
        if not isinstance(self.image, Image.Image):
            what = type(self.image).__name__
            return [*found, f"image must be a PIL image, got {what}: open it with PIL.Image.open"]
        if self.resolution is not None and not resolution_problems("resolution", self.resolution):
            try:
                check_size(self.image.size, "image", self.resolution)
            except ImageError as error:
                found.append(str(error))
        return found


class OutputSize(StrEnum):
    """Which size layers are written at."""

    MODEL = "model"
    INPUT = "input"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions(PictureOptions):
    """What is asked of every picture of a run.

    Attributes:
      prompt: of all pictures; None: what the text file beside each says, else an empty one.
      output_size: of the layers that are written.
    """

    prompt: str | None = option(
        None, str, "what each picture shows", unset="what NAME.txt beside NAME.png says, else nothing", decides=False
    )
    output_size: OutputSize = option(OutputSize.MODEL, OutputSize, "size of the layers written")

    def filled(self, defaults: Defaults) -> "JobOptions":
        """The same with a checkpoint's defaults where nothing is said."""
        return _filled(self, defaults)

    def request(self, image: Image.Image, prompt: str, sample: int) -> Request:
        """What is asked of the pipeline for one sample of a picture."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(PictureOptions)}
        return Request(**{**shared, "image": image, "prompt": prompt, "samples": 1, "first_sample": sample})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What all pictures of a batch share.

    Attributes:
      steps: of Euler's method; None: the checkpoint's default.
      guidance: scale of classifier-free guidance; at most 1: one forward pass a step instead of two; None: the
        checkpoint's default.
      rescale: what happens to the length of a guided velocity.
      max_prompt_tokens: states of a prompt beyond this many are cut off.
    """

    steps: int | None = option(None, int, "Euler steps", least=1)
    guidance: float | None = option(None, float, "guidance scale, 1 switches it off")
    rescale: Rescale = option(Rescale.NORM, Rescale, "length of guided velocities")
    max_prompt_tokens: int = option(512, int, "tokens of a prompt", least=1)

    def filled(self, defaults: Defaults) -> "Settings":
        """The same with a checkpoint's defaults where nothing is said."""
        return _filled(self, defaults)

    def problems(self, named: Named = str) -> list[str]:
        """Everything that is wrong with these settings, in words."""
        return option_problems(self, named)


Asked = TypeVar("Asked", Request, JobOptions, Settings)


def _filled(asked: Asked, defaults: Defaults) -> Asked:
    unsaid = [f.name for f in dataclasses.fields(asked) if getattr(asked, f.name) is None and hasattr(defaults, f.name)]
    return dataclasses.replace(asked, **{name: getattr(defaults, name) for name in unsaid})


def result_settings(options: JobOptions, settings: Settings, dtype: str | None) -> dict[str, Any]:
    """Everything that was asked and decides a result, but for its prompt and its sample, as JSON has it."""
    return {**deciding(options), **deciding(settings), "dtype": dtype}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decomposition:
    """One sample of one request.

    Attributes:
      layered: the layers, bottom to top.
      composite: the model's own picture of the whole, generated beside the layers.
      input: the request's picture at the model's size.
      latents: normalised, composite first.
      timings: seconds of the whole batch by phase.
      request: what was asked, defaults filled in.
      sample: its number.
    """

    layered: LayeredImage
    composite: UInt8[np.ndarray, "y x 4"]
    input: UInt8[np.ndarray, "y x 4"]
    latents: Float[np.ndarray, "l1 h w z"]
    timings: Mapping[str, float]
    request: Request
    sample: int
