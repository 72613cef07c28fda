"""The inference pipeline from pictures to layers.

RGBA picture -> bucket -> RGBA-VAE -> tokens and positions -> Euler with VLD-MMDiT -> RGBA-VAE -> LayeredImage
"""

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qil_jax.encoders.image_encoder import Autoencoder
from qil_jax.encoders.text_encoder import PromptEncoder
from qil_jax.encoders.tokenizer import PromptTokenizer
from qil_jax.errors import ProblemsError
from qil_jax.inference.batch import Item, Ways, build_batch
from qil_jax.inference.checkpoint import Checkpoint
from qil_jax.inference.denoiser import Denoiser, OnStep, OnTokens
from qil_jax.inference.images import bucket_size, preprocess
from qil_jax.inference.memory import Drawing, MemoryPlan, plan_memory, require_memory
from qil_jax.inference.request import Decomposition, Request, Settings, known
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.mesh import INFERENCE_RULES, Rules, single_device_mesh
from qil_jax.models.attention import AttentionKind, joint_attention
from qil_jax.models.axes import Axis
from qil_jax.models.latents import unpack
from qil_jax.weights import Component, load_component


class Pipeline:
    """A loaded checkpoint that decomposes pictures.

    Attributes:
      checkpoint: folder, configs and defaults of the checkpoint.
      prompts: tokenizer and text encoder.
      autoencoder: the RGBA-VAE.
      denoiser: the VLD-MMDiT with its sampling loop.
    """

    def __init__(self, checkpoint: Checkpoint, *, prompts: PromptEncoder, autoencoder: Autoencoder, denoiser: Denoiser):
        self.checkpoint, self.prompts, self.autoencoder, self.denoiser = checkpoint, prompts, autoencoder, denoiser

    @classmethod
    def load(
        cls,
        checkpoint: Path | str | None = None,
        *,
        mesh: Mesh | None = None,
        rules: Rules = INFERENCE_RULES,
        dtype: str | None = None,
        attention: AttentionKind | None = None,
        loras: Sequence[tuple[Path | str, float]] = (),
    ) -> "Pipeline":
        """Load a checkpoint of the released layout (diffusers) or of ours (orbax).

        Args:
          checkpoint: folder that holds model_index.json; None: the demonstration model that the package ships.
          mesh: mesh on which parameters and batches are placed; None: the first device.
          rules: sharding rules that map logical axes to mesh axes.
          dtype: dtype of parameters and activations; None: the stored dtype. Latents between steps are always fp32.
          attention: the transformer's attention; None: XLA_BY_HEAD on one CPU, XLA_CHUNKED elsewhere.
          loras: LoRA files of the transformer, each with the scale of its changes; 1 applies it as it was trained.

        Raises:
          StructureError: if the checkpoint is not sound; raised before any tensor is read, listing every problem.
          LoRAError: if LoRA files cannot be read or do not fit the transformer; the message lists every problem.
          ConfigError: if a config requires a feature that this pipeline does not support.
          MeshError: if the rules do not fit the mesh or the parameters.
          QilError: if `dtype` is neither float32 nor bfloat16, or the parameters do not fit into memory.
        """
        opened = Checkpoint.open(checkpoint, dtype=dtype, loras=loras)
        return cls.of(opened, mesh=mesh, rules=rules, attention=attention)

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        *,
        mesh: Mesh | None = None,
        rules: Rules = INFERENCE_RULES,
        attention: AttentionKind | None = None,
    ) -> "Pipeline":
        """Load an opened checkpoint, with the arguments and errors of `load`."""
        mesh = single_device_mesh() if mesh is None else mesh
        one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
        kind = attention or (AttentionKind.XLA_BY_HEAD if one_cpu else AttentionKind.XLA_CHUNKED)
        require_memory(MemoryPlan(parameters=checkpoint.size.parameters), mesh)
        tokenizer = PromptTokenizer.load(checkpoint.folder)
        load = functools.partial(load_component, checkpoint.folder, mesh=mesh, rules=rules, dtype=checkpoint.dtype)
        loras = [(applied.lora, applied.scale) for applied in checkpoint.loras]
        return cls(
            checkpoint,
            prompts=PromptEncoder(tokenizer, load(Component.TEXT_ENCODER), mesh=mesh),
            autoencoder=Autoencoder(load(Component.VAE), mesh=mesh),
            denoiser=Denoiser(
                load(Component.TRANSFORMER, loras=loras), mesh=mesh, rules=rules, attend=joint_attention(kind)
            ),
        )

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
        defaults = self.checkpoint.defaults
        requests, settings = [r.filled(defaults) for r in requests], settings.filled(defaults)
        self._check(requests, settings)
        timings: dict[str, float] = {}
        inputs = [preprocess(request.image, known(request.resolution)) for request in requests]
        with _timed(timings, "text"):
            texts = [r.prompt for r in requests] + [
                r.negative_prompt for r in requests if r.negative_prompt is not None
            ]
            states = self.prompts(texts, max_tokens=settings.max_prompt_tokens)
        with _timed(timings, "encode"):
            conditions = [self.autoencoder.encode(pixels[None])[0] for _, pixels in inputs]
        jobs = [(i, sample) for i, request in enumerate(requests) for sample in range(request.samples)]
        items = [self._item(requests[i], sample, conditions[i], states, settings) for i, sample in jobs]
        with _timed(timings, "denoise"):
            batch = build_batch(items, patch=self._patch, guidance=known(settings.guidance), ways=self._ways())
            tokens = self.denoiser(batch, rescale=settings.rescale, on_step=on_step, on_tokens=on_tokens)
            latents = [
                unpack(row[is_target], self._patch, item.grid(self._patch))
                for row, is_target, item in zip(tokens, np.asarray(batch.is_target), items, strict=False)
            ]
        with _timed(timings, "decode"):
            pictures = [self.autoencoder.decode(latent) for latent in latents]
        return [
            Decomposition(
                layered=LayeredImage(layers=p[1:], names=_names(len(p) - 1), caption=requests[i].prompt),
                composite=p[0],
                input=inputs[i][0],
                latents=latent,
                timings=timings,
                request=requests[i],
                sample=requests[i].first_sample + sample,
            )
            for (i, sample), p, latent in zip(jobs, pictures, latents, strict=True)
        ]

    @property
    def _patch(self) -> int:
        return self.denoiser.config.patch_size

    def _check(self, requests: Sequence[Request], settings: Settings) -> None:
        problems = settings.problems()
        if not requests:
            problems.append("there is nothing to decompose: give at least one request")
        for i, request in enumerate(requests):
            found = request.problems() or self._latent_problems(request)
            problems += [f"request {i}: {problem}" for problem in found]
        if problems:
            raise ProblemsError("cannot decompose", problems)
        drawings = [
            Drawing.of(r.image.size, resolution=known(r.resolution), layers=known(r.layers), samples=r.samples)
            for r in requests
        ]
        require_memory(plan_memory(drawings, settings, self.checkpoint), self.denoiser.mesh)

    def _latent_problems(self, request: Request) -> list[str]:
        if request.latents is None:
            return []
        wide, high = bucket_size(*request.image.size, known(request.resolution))
        scale, z = self.autoencoder.config.scale_factor, self.autoencoder.config.z_dim
        shape = (request.samples, known(request.layers) + 1, high // scale, wide // scale, z)
        found = np.shape(request.latents)
        return [] if found == shape else [f"latents have shape {found}, this picture needs {shape}"]

    def _item(
        self, request: Request, sample: int, condition: np.ndarray, states: dict[str, np.ndarray], settings: Settings
    ) -> Item:
        shape = (known(request.layers) + 1, *condition.shape)
        if request.latents is None:
            key = jax.random.fold_in(jax.random.key(request.seed), request.first_sample + sample)
            noise = np.asarray(jax.random.normal(key, shape, jnp.float32))
        else:
            noise = np.asarray(request.latents[sample], np.float32)
        rows, cols = condition.shape[0] // self._patch, condition.shape[1] // self._patch
        return Item(
            noise=noise,
            condition=condition,
            prompt=states[request.prompt],
            negative=None if request.negative_prompt is None else states[request.negative_prompt],
            sigmas=self.checkpoint.schedule.sigmas(known(settings.steps), tokens=rows * cols),
        )

    def _ways(self) -> Ways:
        ways = functools.partial(self.denoiser.rules.ways, mesh=self.denoiser.mesh)
        return Ways(samples=ways(Axis.SAMPLE), rows=ways(Axis.BATCH), tokens=ways(Axis.RESIDUAL))


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"Layer {i}" for i in range(1, count + 1))


@contextmanager
def _timed(timings: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[phase] = time.perf_counter() - start
