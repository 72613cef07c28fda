"""Requests, settings and results of `Pipeline.decompose`. This module does not import JAX."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
from annotated_types import Ge, Interval
from jaxtyping import Float, UInt8
from PIL import Image

from qil_jax.choices import (
    MAX_DEPTH,
    MAX_LAYERS,
    MAX_PROMPT_TOKENS,
    MAX_SEED,
    CaptionLanguage,
    Edges,
    OutputSize,
    Rescale,
    Split,
)
from qil_jax.errors import ProblemsError, shown
from qil_jax.export.format import Format
from qil_jax.inference.defaults import Defaults, Layers, Resolution, Steps
from qil_jax.inference.images import ImageError, check_size
from qil_jax.layers.descriptions import LayerDescription
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.options import Named, Number, ShortText, option, problems_of, recorded, value_problems

OnStep = Callable[[int, int], None]
"""A callback with (steps done, steps)."""


def _else(default: object) -> str:
    """What None means in an option for which a checkpoint may have a default."""
    return f"what the checkpoint says in qil.json, else {default}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """Options of a decomposition that do not depend on the picture.

    Attributes:
      layers: number of layers; None: the checkpoint's default.
      negative_prompt: prompt of the unconditional pass of guidance; None: no guidance for this picture.
      resolution: side of the size bucket in pixels; None: the checkpoint's default.
      seed: seed of the initial noise.
      samples: number of decompositions per picture.
      max_layers: upper bound of `layers`; the release was trained with at most 20.
      caption_language: language in which the model captions a picture that has no prompt.
    """

    layers: Layers | None = option(None, f"layers to make, 1 to {MAX_LAYERS}", unset=_else(Defaults.layers))
    negative_prompt: ShortText | None = option(" ", "what guidance leads away from")
    resolution: Resolution | None = option(
        None, "size bucket: 640 or 1024 in the release", unset=_else(Defaults.resolution)
    )
    seed: Annotated[int, Interval(ge=0, le=MAX_SEED)] = option(777, f"seed of the noise, 0 to {MAX_SEED}")
    samples: Annotated[int, Ge(1)] = option(1, "decompositions per picture", decides=False)
    max_layers: Layers = option(MAX_LAYERS, "allow more layers than the model was trained with", decides=False)
    caption_language: CaptionLanguage = option(CaptionLanguage.EN, "language of captions by the model", decides=False)

    def problems(self, named: Named = str) -> list[str]:
        """One message for each invalid option."""
        found, layers, most = problems_of(self, named), self.layers, self.max_layers
        if isinstance(layers, int) and isinstance(most, int) and layers > most >= 1:
            hint = f"the model was trained with at most {MAX_LAYERS}, {named('max_layers')} N allows more"
            found.append(f"{named('layers')} must be from 1 to {most}, got {layers}; {hint}")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedPicture(PictureOptions):
    """Options of a decomposition, with the checkpoint's defaults in place of None; `filled` makes its subclasses.

    Attributes:
      layers: number of layers.
      resolution: side of the size bucket in pixels.
    """

    layers: Layers = dataclasses.field()
    resolution: Resolution = dataclasses.field()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request(PictureOptions):
    """One picture to decompose, with its options. Requests of one batch may differ in every field.

    Attributes:
      image: picture of any mode and size.
      prompt: description of the picture; None: the model captions it, or an empty one if the checkpoint cannot caption.
      first_sample: index of the first sample; a sample's noise is drawn from the seed and its index.
      latents: starting noise [samples, layers + 1, height / 8, width / 8, z], composite first; None: drawn from `seed`.
    """

    image: Image.Image
    prompt: ShortText | None = option(None, "what the picture shows")
    first_sample: Annotated[int, Ge(0)] = option(0, "number of the first sample", decides=False)
    latents: Float[np.ndarray, "s l1 h w z"] | None = None

    def filled(self, defaults: Defaults) -> "ResolvedRequest":
        """The request in which options that are None have the checkpoint's defaults."""
        return ResolvedRequest(**_filled(self, defaults))

    def problems(self, named: Named = str) -> list[str]:
        """One message for each invalid field of the request."""
        found = super().problems(named)
        if not isinstance(self.image, Image.Image):
            what = type(self.image).__name__
            return [*found, f"image must be a PIL image, got {what}: open it with PIL.Image.open"]
        if self.resolution is not None and not value_problems("", self.resolution, Resolution):
            try:
                check_size(self.image.size, "image", self.resolution)
            except ImageError as error:
                found.append(str(error))
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedRequest(ResolvedPicture, Request):
    """A request with the checkpoint's defaults in place of None."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobOptions(PictureOptions):
    """Options of the requests of all pictures of a run.

    Attributes:
      prompt: prompt of all pictures; None: the text file beside each picture, or else a caption by the model.
      output_size: size at which layers are written; None: the checkpoint's default.
      edges: how layers are brought to the size of the input.
      auto: whether layers that are empty, or copies of the picture or of one another, are taken out.
      exact: whether colours are adjusted so that the layers blend to the picture within 1/255.
      depth: number of levels: 2 decomposes the layers once more.
      split: choice of the layers that are decomposed again.
      hidden_masks: whether results get masks of the pixels of each layer that nobody sees.
      described: what single layers show and where, bottom to top.
      exports: formats of the files that a result holds beside its PNGs.
    """

    prompt: ShortText | None = option(
        None, "what each picture shows", unset="what NAME.txt beside NAME.png says, else a caption", decides=False
    )
    output_size: OutputSize | None = option(None, "size of the layers written", unset=_else(Defaults.output_size))
    edges: Edges = option(Edges.REFINED, "layers at the size of the input: with the picture's edges, or blurred")
    auto: bool = option(False, "take out superfluous layers", later=True)
    exact: bool = option(False, "adjust colours so that the layers blend to the picture within 1/255", later=True)
    depth: Annotated[int, Interval(ge=1, le=MAX_DEPTH)] = option(
        1, "levels: 2 decomposes the layers once more", later=True
    )
    split: Split = option(Split.ALL, "which layers are decomposed again", later=True)
    hidden_masks: bool = option(False, "write NN_NAME.hidden.png beside each layer: where others hide it", later=True)
    described: tuple[LayerDescription, ...] = ()
    exports: tuple[Format, ...] = (Format.PSD,)

    def filled(self, defaults: Defaults) -> "ResolvedOptions":
        """The options in which those that are None have the checkpoint's defaults."""
        return ResolvedOptions(**_filled(self, defaults))

    def problems(self, named: Named = str) -> list[str]:
        """One message for each invalid option."""
        found = super().problems(named)
        if self.hidden_masks is True and self.depth != 1:
            masks, depth = named("hidden_masks"), named("depth")
            found.append(f"{masks} goes with {depth} 1: what hides parts of layers depends on where each part lies")
        return found

    def request(self, image: Image.Image, prompt: str, sample: int) -> Request:
        """The pipeline's request for one sample of a picture."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(PictureOptions)}
        return Request(**{**shared, "image": image, "prompt": prompt, "samples": 1, "first_sample": sample})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedOptions(ResolvedPicture, JobOptions):
    """Options of a run, with the checkpoint's defaults in place of None.

    Attributes:
      output_size: size at which layers are written.
    """

    output_size: OutputSize = dataclasses.field()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sampler settings shared by all pictures of a batch.

    Attributes:
      steps: number of Euler steps; None: the checkpoint's default.
      guidance: scale of classifier-free guidance; values up to 1 switch it off and need one forward pass per step
        instead of two; None: the checkpoint's default.
      rescale: rescaling of a guided velocity's norm.
      max_prompt_tokens: maximum number of text tokens of a prompt; further ones are cut off, which is told.
    """

    steps: Steps | None = option(None, "Euler steps", unset=_else(Defaults.steps))
    guidance: Number | None = option(None, "guidance scale, 1 switches it off", unset=_else(Defaults.guidance))
    rescale: Rescale = option(Rescale.NORM, "length of guided velocities")
    max_prompt_tokens: Annotated[int, Interval(ge=1, le=MAX_PROMPT_TOKENS)] = option(
        512, f"tokens of a prompt that are read, 1 to {MAX_PROMPT_TOKENS}"
    )

    def filled(self, defaults: Defaults) -> "ResolvedSettings":
        """The settings in which those that are None have the checkpoint's defaults."""
        return ResolvedSettings(**_filled(self, defaults))

    def problems(self, named: Named = str) -> list[str]:
        """One message for each invalid setting."""
        return problems_of(self, named)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedSettings(Settings):
    """Sampler settings, with the checkpoint's defaults in place of None.

    Attributes:
      steps: number of Euler steps.
      guidance: scale of classifier-free guidance.
    """

    steps: Steps = dataclasses.field()
    guidance: Number = dataclasses.field()


def _filled(options: Request | JobOptions | Settings, defaults: Defaults) -> dict[str, Any]:
    """The values of all fields, with the checkpoint's defaults in place of None."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {name: getattr(defaults, name, None) if value is None else value for name, value in values.items()}


def require_types(requests: object, settings: object) -> "list[Request]":
    """The requests as a list, after a check that they and the settings are what `Pipeline.decompose` takes.

    Raises:
      ProblemsError: if they are something else; the message says what is taken.
    """
    problems = []
    if not isinstance(settings, Settings):
        problems.append(f"settings must be Settings(steps=..., guidance=...), got {shown(settings)}")
    if isinstance(requests, Request):
        problems.append("requests must be a list: put the request into one, [request]")
    elif isinstance(requests, str | bytes | Mapping) or not isinstance(requests, Iterable):
        problems.append(f"requests must be a list of Request(image=...), got {shown(requests)}")
    if problems:
        raise ProblemsError("cannot decompose", problems)
    assert isinstance(requests, Iterable)
    found: list[Any] = list(requests)
    problems = [
        f"request {i}: must be a Request(image=...), got {shown(request)}"
        for i, request in enumerate(found)
        if not isinstance(request, Request)
    ]
    if problems:
        raise ProblemsError("cannot decompose", problems)
    return found


def result_settings(options: ResolvedOptions, settings: ResolvedSettings, dtype: str | None) -> dict[str, Any]:
    """The options and settings that affect a result, except its prompt and its sample, as JSON values."""
    described = {"described": [dataclasses.asdict(said) for said in options.described]} if options.described else {}
    chosen = recorded(options)
    if options.output_size is not OutputSize.INPUT and options.depth == 1:
        del chosen["edges"]  # nothing is brought to another size
    return {**chosen, **described, **recorded(settings), "dtype": None if dtype is None else str(dtype)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decomposition:
    """One sample of one request.

    Attributes:
      layered: RGBA layers from the bottom to the top.
      composite: flat picture that the model generates together with the layers.
      input: request's picture at the model's size.
      latents: normalised latents, composite first.
      timings: seconds of the whole batch by phase.
      request: request with the defaults filled in.
      sample: index of the sample.
    """

    layered: LayeredImage
    composite: UInt8[np.ndarray, "y x 4"]
    input: UInt8[np.ndarray, "y x 4"]
    latents: Float[np.ndarray, "l1 h w z"]
    timings: Mapping[str, float]
    request: ResolvedRequest
    sample: int


@runtime_checkable
class Decomposer(Protocol):
    """The interface of a pipeline that jobs and recursion use."""

    def decompose(
        self,
        requests: Sequence[Request],
        settings: Settings = ...,
        *,
        on_step: OnStep | None = None,
    ) -> list[Decomposition]:
        """Decompose a batch."""
        ...
