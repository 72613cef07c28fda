"""The stages that train the transformer by rectified flow (arXiv 2512.15603, section 3.2; docs/specification.md, 8)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qil_jax.choices import Inputs
from qil_jax.encoders.image_encoder import Autoencoder
from qil_jax.encoders.text_encoder import PromptEncoder
from qil_jax.encoders.tokenizer import PromptTokenizer
from qil_jax.flow import euler
from qil_jax.kernels import attend_for
from qil_jax.loader.batch import Batch
from qil_jax.mesh import Sharding, constrain
from qil_jax.models.attention import Attend
from qil_jax.models.axes import Axis
from qil_jax.models.latents import unpack
from qil_jax.models.stack import Scan
from qil_jax.models.vld_mmdit import MMDiTConfig, VLDMMDiT
from qil_jax.training.batches import FlowBatch, RowPlacement
from qil_jax.training.experiment import Experiment
from qil_jax.training.flops import flow_flops
from qil_jax.training.initial import Initial
from qil_jax.training.inputs import CachedInputs, OnlineInputs, TokenShape
from qil_jax.training.lora import LoRAConfig, initial_factors, stored_factors
from qil_jax.training.objectives import Compute, Objective, flow_objective
from qil_jax.training.parameters import Network, Params, params_of, training_network
from qil_jax.weights import Component
from qil_jax.weights.lora import read_lora

SEED = 977
"""Seed of the initial noise of validation samples."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FlowStage:
    """The `StageProgram` of the transformer.

    Attributes:
      network: transformer without its parameters.
      config: config of the transformer.
      objective: weighted error of the velocity.
      encode: conversion of batches, of pictures and captions or of cached encodings, to inputs of the step.
      autoencoder: frozen RGBA-VAE, which decodes samples.
      sampler_steps: number of sampler steps for the validation sheet.
      dtype: dtype in which samples are computed: that of the stored kernels.
      lora: settings of the trained low-rank changes; None: the parameters themselves are trained.
    """

    network: Network[VLDMMDiT]
    config: MMDiTConfig
    objective: Objective
    encode: OnlineInputs | CachedInputs
    autoencoder: Autoencoder
    sampler_steps: int
    dtype: Any
    lora: LoRAConfig | None

    def inputs(self, batch: Batch) -> FlowBatch:
        """The tokens of all rows and the hidden states of their prompts."""
        return self.encode(batch)

    def flops(self, inputs: FlowBatch) -> float:
        """The FLOPs of a step on these rows."""
        return flow_flops(self.config, inputs, frozen=self.lora is not None)

    def tokens(self, batch: Batch) -> int:
        """The number of image tokens of the batch's samples."""
        height, width = self._grid(batch)
        return int((batch.segments > 0).sum()) * height * width

    def sheet(self, params: Params, batch: Batch, inputs: FlowBatch, count: int) -> list[list[np.ndarray]]:
        """Two lines per row: its pictures, including conditions, and below them the same with sampled targets."""
        inputs = jax.tree.map(lambda x: x[:count], inputs)
        grid = self._grid(batch)
        length = batch.segments.shape[1] * grid[0] * grid[1]
        lines = []
        pairs = zip(np.asarray(inputs.clean), np.asarray(self._sample(params, inputs)), strict=True)
        for row, pair in enumerate(pairs):
            shown = batch.segments[row] > 0
            lines += [
                list(self.autoencoder.decode(unpack(x[:length], self.config.patch_size, grid))[shown]) for x in pair
            ]
        return lines

    def export_config(self, params: Params, examples: Iterator[FlowBatch]) -> dict[str, Any]:
        """An empty dictionary: training does not change the transformer's config."""
        del params, examples
        return {}

    def _grid(self, batch: Batch) -> tuple[int, int]:
        """Numbers of tokens along height and width of the batch's pictures."""
        height, width = batch.pictures.shape[2:4]
        return height // self.encode.token_side, width // self.encode.token_side

    @functools.cached_property
    def _sample(self) -> Callable[[Params, FlowBatch], Array]:
        """The compiled sampler, which denoises target tokens from noise without guidance."""

        def sample(params: Params, batch: FlowBatch) -> Array:
            network = self.network(params, self.dtype)
            text = batch.text.astype(self.dtype)
            sigmas = jnp.repeat(jnp.linspace(1.0, 0.0, self.sampler_steps + 1)[:, None], len(batch.rows), axis=1)
            noise = jax.random.normal(jax.random.key(SEED), batch.clean.shape)
            kinds = batch.target_kinds if self.config.use_additional_t_cond else None

            def velocity(x: Array, sigma: Array) -> Array:
                return network(x.astype(self.dtype), text, batch.layout, sigma=sigma, target_kind=kinds)

            start = jnp.where(batch.is_target[..., None], noise, batch.clean)
            return euler(velocity, start, sigmas=sigmas, is_target=batch.is_target, step_inputs=sigmas[:-1])

        return jax.jit(sample)


def flow_stage(
    experiment: Experiment, initial: Initial, placement: RowPlacement, source: Any
) -> tuple[FlowStage, Params]:
    """The stage and its initial parameters; Qwen-Image's transformer is extended to a layered one.

    Raises:
      MeshError: if attention does not run on the mesh, or the mesh does not fit the transformer.
      QilError: if encoders or settings of cached latents differ from the experiment's.
    """
    start, dtype = experiment.start, jnp.dtype(experiment.precision)
    checkpoint, sharding = initial[Component.TRANSFORMER], placement.sharding
    lora = experiment.lora
    kept = jnp.dtype(jnp.float32) if lora is None else dtype  # trained parameters are fp32, a frozen base need not be
    layered = checkpoint[Component.TRANSFORMER].architecture.layered
    attend = _attend(experiment, layered.config, sharding)
    model = checkpoint.load(Component.TRANSFORMER, sharding, dtype=kept, layered=True)
    config, params = model.config, params_of(model)
    if lora is not None:
        lora.add_to(model)
        stored = {}
        if start.lora is not None:
            stored = stored_factors(read_lora(Path(start.lora), layered.table), layered.table)
        params |= initial_factors(model, sharding, seed=experiment.seed, stored=stored)
    network = training_network(model)
    vae = initial[Component.VAE].load(Component.VAE, sharding, dtype=dtype)
    autoencoder = Autoencoder(vae, mesh=sharding.mesh)
    shape = TokenShape(
        scale=vae.config.scale_factor,
        patch=config.patch_size,
        text=experiment.data.text_tokens,
        ways=sharding.ways(Axis.RESIDUAL),
    )
    if experiment.data.inputs is Inputs.LATENTS:
        require_same_encoders(experiment, initial, source)
        encode = CachedInputs(placement, shape, experiment.flow_loss, seed=experiment.seed)
    else:
        tower = checkpoint.load(Component.TEXT_ENCODER, sharding, dtype=dtype)
        prompts = PromptEncoder(PromptTokenizer(checkpoint.tokenizer), tower, mesh=sharding.mesh)
        encode = OnlineInputs(autoencoder, prompts, placement, shape, experiment.flow_loss, seed=experiment.seed)
    compute = Compute(
        dtype=dtype,
        attend=attend,
        scan=Scan(remat=experiment.remat, unroll=experiment.unroll),
        constrain=constrain(sharding),
    )
    stage = FlowStage(
        network=network,
        config=config,
        objective=flow_objective(network, experiment.flow_loss, compute),
        encode=encode,
        autoencoder=autoencoder,
        sampler_steps=experiment.validation.steps,
        dtype=kept,
        lora=lora,
    )
    return stage, params


def _attend(experiment: Experiment, config: MMDiTConfig, sharding: Sharding) -> Attend:
    return attend_for(
        experiment.attention,
        experiment.spread,
        heads=config.num_attention_heads,
        sharding=sharding,
        backward=True,
    )


def require_same_encoders(experiment: Experiment, initial: Initial, source: Any) -> None:
    """Refuse cached latents whose encoders or empty prompt differ from the experiment's, or with fewer text tokens."""
    source.require_encoders(
        vae=initial[Component.VAE].fingerprint(Component.VAE),
        text_encoder=initial[Component.TEXT_ENCODER].fingerprint(Component.TEXT_ENCODER),
        no_prompt=experiment.flow_loss.no_prompt,
        text=experiment.data.text_tokens,
    )
