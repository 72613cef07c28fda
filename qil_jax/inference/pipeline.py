"""The inference pipeline from pictures to layers.

RGBA picture -> bucket -> RGBA-VAE -> tokens and positions -> Euler with VLD-MMDiT -> RGBA-VAE -> LayeredImage
"""

import dataclasses
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image

from qil_jax.choices import AttentionKind, CaptionLanguage, Passes, Residency, Spread
from qil_jax.encoders.caption_prompts import CaptionStyle
from qil_jax.encoders.image_encoder import Autoencoder
from qil_jax.encoders.lengths import row_bucket
from qil_jax.encoders.text_encoder import PromptEncoder
from qil_jax.errors import ProblemsError, shown
from qil_jax.inference.batch import Item, SequenceBatch, build_batch
from qil_jax.inference.caption_job import captions_of
from qil_jax.inference.captions import prompts_of
from qil_jax.inference.checkpoint import LayeredCheckpoint
from qil_jax.inference.components import Components
from qil_jax.inference.denoiser import Denoiser, OnStep, OnTokens
from qil_jax.inference.images import bucket_size, preprocess
from qil_jax.inference.memory import Drawing, plan_memory, require_memory
from qil_jax.inference.outline import Outline
from qil_jax.inference.request import Decomposition, Request, ResolvedRequest, ResolvedSettings, Settings, require_types
from qil_jax.kernels import attend_for
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.mesh import INFERENCE_RULES, MeshAxis, Sharding, single_device_mesh
from qil_jax.models.attention import Attend
from qil_jax.models.axes import Axis
from qil_jax.models.latents import unpack
from qil_jax.models.vld_mmdit import ModulationTable


class Pipeline:
    """A checkpoint that decomposes pictures.

    Attributes:
      checkpoint: folder, configs and defaults of the checkpoint.
      components: the checkpoint's components on the mesh.
      batch: number of samples of a job's batches; smaller ones are padded to a power of two of at most this.
    """

    def __init__(self, checkpoint: LayeredCheckpoint, components: Components):
        self.checkpoint, self.components = checkpoint, components
        self._states: dict[tuple[str, int], np.ndarray] = {}
        self._tables: dict[bytes, ModulationTable] = {}
        self.batch = 1

    @classmethod
    def load(
        cls,
        checkpoint: Path | str | None = None,
        *,
        sharding: Sharding | None = None,
        dtype: str | None = None,
        attention: AttentionKind | None = None,
        loras: Sequence[tuple[Path | str, float]] = (),
        passes: Passes = Passes.BATCH,
        residency: Residency = Residency.ALL,
    ) -> "Pipeline":
        """Load a checkpoint of the released layout (diffusers) or of ours (orbax).

        Args:
          checkpoint: folder that holds model_index.json; None: the demonstration model that the package ships.
          sharding: mesh on which parameters and batches are placed, and the rules that map logical axes to its axes;
            None: the first device, with the rules of inference.
          dtype: dtype of parameters and activations; None: the stored dtype. Latents between steps are always fp32.
          attention: the transformer's attention; None: SPLASH on TPUs, XLA_BY_HEAD on one CPU, XLA_CHUNKED elsewhere.
          loras: LoRA files of the transformer, each with the scale of its changes; 1 applies it as it was trained.
            What one that is known needs beside its file is said as a warning.
          passes: the way in which the two passes of guidance are computed.
          residency: the policy by which components stay in device memory.

        Raises:
          StructureError: if the checkpoint is not sound; raised before any tensor is read, listing every problem.
          LoRAError: if LoRA files cannot be read or do not fit the transformer; the message lists every problem.
          ConfigError: if a config requires a feature that this pipeline does not support.
          MeshError: if the rules do not fit the mesh or the parameters.
          ProblemsError: if arguments are of other types; the message lists all.
          QilError: if `dtype` is neither float32 nor bfloat16, if the parameters do not fit into memory, or if the
            mesh splits sequential passes.
        """
        kinds = {"sharding": Sharding, "attention": AttentionKind, "passes": Passes, "residency": Residency}
        given = {"sharding": sharding, "attention": attention, "passes": passes, "residency": residency}
        optional = ("sharding", "attention")
        problems = [
            f"{name} must be a {kinds[name].__name__}{' or None' if name in optional else ''}, got {shown(value)}"
            for name, value in given.items()
            if not isinstance(value, kinds[name]) and not (value is None and name in optional)
        ]
        if problems:
            raise ProblemsError("cannot load", problems)
        opened = LayeredCheckpoint.open(checkpoint, dtype=dtype, loras=loras)
        for line in opened.advice:
            warnings.warn(line, stacklevel=2)
        return cls.of(opened, sharding=sharding, attention=attention, passes=passes, residency=residency)

    @classmethod
    def of(
        cls,
        checkpoint: LayeredCheckpoint,
        *,
        sharding: Sharding | None = None,
        attention: AttentionKind | None = None,
        spread: Spread | None = None,
        passes: Passes = Passes.BATCH,
        residency: Residency = Residency.ALL,
        is_abstract: bool = False,
    ) -> "Pipeline":
        """Load an opened checkpoint, with the arguments and errors of `load`.

        `spread` says how queries meet keys where the mesh splits sequences; None: Spread.ULYSSES where the heads divide
        into as many parts, else Spread.GATHER. With `is_abstract`, parameters are not read: such a pipeline compiles
        its programs, and decomposes nothing.
        """
        sharding = Sharding(single_device_mesh(), INFERENCE_RULES) if sharding is None else sharding
        least = ResolvedSettings(steps=1, guidance=1.0)
        nothing = plan_memory([], least, checkpoint, residency=residency, passes=passes)
        require_memory(nothing, sharding.mesh)
        components = Components(
            checkpoint,
            sharding=sharding,
            attend=_attend(checkpoint.transformer.num_attention_heads, sharding, attention, spread),
            passes=passes,
            residency=residency,
            is_abstract=is_abstract,
        )
        return cls(checkpoint, components)

    @property
    def prompts(self) -> PromptEncoder:
        """The tokenizer and text encoder, loaded if they are not."""
        return self.components.prompts()

    @property
    def autoencoder(self) -> Autoencoder:
        """The RGBA-VAE, loaded if it is not."""
        return self.components.autoencoder()

    @property
    def denoiser(self) -> Denoiser:
        """The transformer without its modulation network, loaded if it is not."""
        return self.components.denoiser()

    def prepare(self, outlines: Iterable[Outline], settings: Settings = Settings(), *, batch: int = 1) -> None:
        """Compute what many pictures need before the first of them is denoised, and keep it on the host.

        These are the hidden states of all prompts and the modulation tables of all schedules, so that under
        Residency.PHASES the text encoder and the modulation network are loaded once. They are kept until the next call.

        Args:
          outlines: sizes, layer counts and prompts of the pictures.
          settings: the settings with which they will be decomposed.
          batch: number of samples at once, see the attribute.
        """
        settings, outlines = settings.filled(self.checkpoint.defaults), list(outlines)
        self._require_guidance([outline.negative_prompt for outline in outlines], settings)
        prompts = [prompt for outline in outlines for prompt in outline.prompts]
        self._states = self._encoded(prompts, settings)
        self._tables = self._tabled([self.sigmas(outline.size, settings) for outline in outlines])
        self.batch = batch

    def captions(
        self,
        images: Sequence[Image.Image],
        *,
        resolution: int | None = None,
        language: CaptionLanguage = CaptionLanguage.EN,
        style: CaptionStyle = CaptionStyle.UNBROKEN,
        batch: int = 1,
    ) -> list[str]:
        """Captions of pictures, as the checkpoint's text encoder describes them when a request has no prompt.

        Args:
          images: pictures of any mode and size; each is shown as the model sees it, with alpha over white.
          resolution: side of the size bucket in pixels; None: the checkpoint's default.
          language: the language of the captions.
          style: the line breaks of the instruction.
          batch: number of pictures at once.

        Raises:
          ConfigError: if the checkpoint cannot caption, or its files do not fit together; raised before any compute.
          CaptionPixelsError: if a picture is too narrow or flat.
        """
        resolution = self.checkpoint.defaults.resolution if resolution is None else resolution
        self.components.enter(self.components.captioner)
        writer = self.components.captioner()
        return captions_of(images, writer, resolution=resolution, language=language, style=style, batch=batch)

    def decompose(
        self,
        requests: Sequence[Request],
        settings: Settings = Settings(),
        *,
        on_step: OnStep | None = None,
        on_tokens: OnTokens | None = None,
    ) -> list[Decomposition]:
        """Decompose pictures of different sizes, layer counts and prompts as one batch.

        The other pictures of the batch affect a picture's result by rounding only.

        Args:
          requests: pictures with their options; None in an option selects the checkpoint's default.
          settings: sampler settings of the whole batch; None in a field selects the checkpoint's default.
          on_step: callback with (steps done, steps) while the compiled loop runs.
          on_tokens: callback with (steps done, token batch), which costs a copy to the host per step.

        Returns:
          `samples` decompositions per request, in order.

        Raises:
          ProblemsError: if requests or settings are invalid; raised before any compute, listing every problem.
          QilError: if the batch does not fit into memory.
        """
        requests = [request.filled(self.checkpoint.defaults) for request in require_types(requests, settings)]
        settings = settings.filled(self.checkpoint.defaults)
        self._check(requests, settings)
        timings: dict[str, float] = {}
        prompts = [request.prompt for request in requests if request.prompt is not None]
        if len(prompts) < len(requests):
            with _timed(timings, "caption"):
                prompts = prompts_of(requests, self.captions if self.checkpoint.has_vision else None)
        requests = [dataclasses.replace(request, prompt=prompts[i]) for i, request in enumerate(requests)]
        inputs = [preprocess(request.image, request.resolution) for request in requests]
        outlines = [Outline.of(requests[i].image.size, requests[i], prompt) for i, prompt in enumerate(prompts)]
        with _timed(timings, "text"):
            states = self._encoded([prompt for outline in outlines for prompt in outline.prompts], settings)
        with _timed(timings, "denoise"):
            tables = self._tabled([self.sigmas(outline.size, settings) for outline in outlines])
        self.components.enter(self.components.autoencoder, self.components.denoiser)
        with _timed(timings, "encode"):
            conditions = [self.autoencoder.encode(pixels[None])[0] for _, pixels in inputs]
        jobs = [(i, sample) for i, request in enumerate(requests) for sample in range(request.samples)]
        texts = [[states[prompt, settings.max_prompt_tokens] for prompt in outline.prompts] for outline in outlines]
        items = [self._item(requests[i], sample, conditions[i], texts[i], settings) for i, sample in jobs]
        with _timed(timings, "denoise"):
            latents = self._denoised(items, tables, settings, on_step=on_step, on_tokens=on_tokens)
        with _timed(timings, "decode"):
            pictures = [self.autoencoder.decode(latent) for latent in latents]
        return [
            Decomposition(
                layered=LayeredImage(
                    layers=p[1:],
                    names=_names(len(p) - 1),
                    caption=prompts[i],
                    decisions=tuple(self.cuts(outlines[i], settings)),
                ),
                composite=p[0],
                input=inputs[i][0],
                latents=latent,
                timings=timings,
                request=requests[i],
                sample=requests[i].first_sample + sample,
            )
            for (i, sample), p, latent in zip(jobs, pictures, latents, strict=True)
        ]

    def cuts(self, outline: Outline, settings: Settings) -> list[str]:
        """A sentence for the prompt, and one for the negative prompt, if it has more tokens than are read."""
        most = settings.max_prompt_tokens
        prompts = {"prompt": outline.prompt, "negative prompt": outline.negative_prompt or ""}
        return [
            f"the {what} has {most + unread} tokens, of which the last {unread} are not read"
            for what, prompt in prompts.items()
            if (unread := self.unread(prompt, settings))
        ]

    def unread(self, prompt: str, settings: Settings) -> int:
        """The number of a prompt's tokens that are cut off."""
        return max(0, self.components.tokenizer.count(prompt) - settings.max_prompt_tokens)

    def sigmas(self, size: tuple[int, int], settings: ResolvedSettings) -> Float[np.ndarray, " steps1"]:
        """The noise levels of a picture that the model sees at `size`, width and height in pixels."""
        side = self.checkpoint.vae.scale_factor * self._patch
        return self.checkpoint.schedule.sigmas(settings.steps, tokens=(size[0] // side) * (size[1] // side))

    def _encoded(self, prompts: Iterable[str], settings: Settings) -> dict[tuple[str, int], np.ndarray]:
        """Hidden states by prompt and maximum length: those that are kept, and the others computed."""
        most = settings.max_prompt_tokens
        missing = [prompt for prompt in prompts if (prompt, most) not in self._states]
        if not missing:
            return self._states
        self.components.enter(self.components.prompts)
        states = self.prompts(missing, max_tokens=most)
        return self._states | {(prompt, most): found for prompt, found in states.items()}

    def _tabled(self, schedules: Iterable[np.ndarray]) -> dict[bytes, ModulationTable]:
        """Modulation tables by the bytes of their schedules: those that are kept, and the others computed."""
        missing = {sigmas.tobytes(): sigmas for sigmas in schedules if sigmas.tobytes() not in self._tables}
        if not missing:
            return self._tables
        self.components.enter(self.components.modulator)
        modulator = self.components.modulator()
        return self._tables | {key: modulator(sigmas) for key, sigmas in missing.items()}

    @property
    def _patch(self) -> int:
        return self.checkpoint.transformer.patch_size

    def _check(self, requests: Sequence[ResolvedRequest], settings: ResolvedSettings) -> None:
        problems, components = settings.problems(), self.components
        if not requests:
            problems.append("there is nothing to decompose: give at least one request")
        for i, request in enumerate(requests):
            found = request.problems() or self._latent_problems(request)
            problems += [f"request {i}: {problem}" for problem in found]
        if problems:
            raise ProblemsError("cannot decompose", problems)
        self._require_guidance([request.negative_prompt for request in requests], settings)
        drawings = [
            Drawing.of(r.image.size, resolution=r.resolution, layers=r.layers, samples=r.samples) for r in requests
        ]
        plan = plan_memory(
            drawings,
            settings,
            self.checkpoint,
            residency=components.residency,
            passes=components.passes,
            captioned=sum(request.prompt is None for request in requests) * self.checkpoint.has_vision,
        )
        require_memory(plan, components.sharding.mesh)

    def _require_guidance(self, negatives: Sequence[str | None], settings: ResolvedSettings) -> None:
        """Refuse a mesh that splits guidance where there is none, since half of its devices would be idle."""
        split = self.components.sharding.mesh.shape[MeshAxis.CFG]
        if split > 1 and (settings.guidance <= 1 or all(negative is None for negative in negatives)):
            hint = f"use data={split} in place of cfg={split}"
            raise ProblemsError("cannot decompose", [f"the mesh splits guidance, which is switched off: {hint}"])

    def _latent_problems(self, request: ResolvedRequest) -> list[str]:
        if request.latents is None:
            return []
        wide, high = bucket_size(*request.image.size, request.resolution)
        scale, z = self.checkpoint.vae.scale_factor, self.checkpoint.vae.z_dim
        shape = (request.samples, request.layers + 1, high // scale, wide // scale, z)
        found = np.shape(request.latents)
        return [] if found == shape else [f"latents have shape {found}, this picture needs {shape}"]

    def _item(
        self,
        request: ResolvedRequest,
        sample: int,
        condition: np.ndarray,
        texts: list[np.ndarray],
        settings: ResolvedSettings,
    ) -> Item:
        """A picture's inputs of the sampler; `texts` are the hidden states of its prompt, and of a negative one."""
        scale = self.checkpoint.vae.scale_factor
        if request.latents is None:
            shape = (request.layers + 1, *condition.shape)
            noise = draw_noise(request.seed, request.first_sample + sample, shape)
        else:
            noise = np.asarray(request.latents[sample], np.float32)
        return Item(
            noise=noise,
            condition=condition,
            prompt=texts[0],
            negative=texts[1] if len(texts) > 1 else None,
            sigmas=self.sigmas((condition.shape[1] * scale, condition.shape[0] * scale), settings),
        )

    def batch_of(self, items: list[Item], settings: ResolvedSettings) -> SequenceBatch:
        """The padded batch of `items`, as the mesh divides it."""
        samples = row_bucket(len(items), max(self.batch, len(items)))
        ways = self.components.ways
        return build_batch(items, patch=self._patch, guidance=settings.guidance, ways=ways, samples=samples)

    def _denoised(
        self,
        items: list[Item],
        tables: dict[bytes, ModulationTable],
        settings: ResolvedSettings,
        *,
        on_step: OnStep | None,
        on_tokens: OnTokens | None,
    ) -> list[np.ndarray]:
        """Latents [l1, h, w, z] of each item."""
        batch = self.batch_of(items, settings)
        modulation = [tables[item.sigmas.tobytes()] for item in items]
        tokens = self.denoiser(batch, modulation, rescale=settings.rescale, on_step=on_step, on_tokens=on_tokens)
        return [
            unpack(row[is_target], self._patch, item.grid(self._patch))
            for row, is_target, item in zip(tokens, batch.is_target, items, strict=False)
        ]


def draw_noise(seed: int, sample: int, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """The initial noise of a sample, which depends on the seed and the sample's number only."""
    key = jax.random.fold_in(jax.random.key(seed), sample)
    return np.asarray(jax.random.normal(key, shape, jnp.float32))


def _attend(heads: int, sharding: Sharding, kind: AttentionKind | None, spread: Spread | None) -> Attend:
    """The attention of `heads` heads on a mesh, with the defaults of `Pipeline.of`."""
    mesh = sharding.mesh
    platform = mesh.devices.flat[0].platform
    if kind is None:
        by_platform = {"tpu": AttentionKind.SPLASH, "cpu": AttentionKind.XLA_BY_HEAD if mesh.size == 1 else None}
        kind = by_platform.get(platform) or AttentionKind.XLA_CHUNKED
    if spread is None:
        parts = sharding.ways(Axis.HEADS) * sharding.ways(Axis.TOKENS)
        spread = Spread.GATHER if heads % parts else Spread.ULYSSES
    return attend_for(kind, spread, heads=heads, sharding=sharding)


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"Layer {i}" for i in range(1, count + 1))


@contextmanager
def _timed(timings: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[phase] = timings.get(phase, 0.0) + time.perf_counter() - start
