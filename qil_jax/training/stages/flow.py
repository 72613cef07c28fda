"""The stages that train the transformer by rectified flow (arXiv 2512.15603, section 3.2; docs/specification.md, 8)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from qil_jax.encoders.tokenizer import PromptTokenizer
from qil_jax.flow import euler
from qil_jax.loader.batch import Batch
from qil_jax.mesh import TRAINING_RULES, constrain
from qil_jax.models.axes import Axis
from qil_jax.models.latents import unpack
from qil_jax.models.qwen2_5_vl import Qwen2_5VLConfig, TextEncoder
from qil_jax.models.rgba_vae import RGBAVAE, VAEConfig
from qil_jax.models.stack import Scan
from qil_jax.models.vld_mmdit import MMDiTConfig, VLDMMDiT
from qil_jax.training.batches import FlowBatch, RowPlacement
from qil_jax.training.experiment import Experiment, Inputs
from qil_jax.training.flops import flow_flops
from qil_jax.training.inputs import CachedInputs, CaptionEncoder, OnlineInputs, PictureEncoder, TokenShape
from qil_jax.training.objectives import Compute, Objective, flow_objective
from qil_jax.training.parameters import Network, Params, params_of
from qil_jax.training.pictures import decoded
from qil_jax.weights import Component, component_config, load_model
from qil_jax.weights.load import fingerprint_of

SEED = 977
"""Seed of the noise from which validation samples start."""
Model = TypeVar("Model", bound=nnx.Module)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FlowStage:
    """The `StageProgram` of the transformer.

    Attributes:
      network: the transformer without its parameters.
      config: its config.
      objective: the weighted error of the velocity.
      encode: pictures and captions to tokens and states, or the cached ones laid out.
      vae: the frozen RGBA-VAE, which decodes samples.
      sampler_steps: steps of the sampler for the validation sheet.
    """

    network: Network[VLDMMDiT]
    config: MMDiTConfig
    objective: Objective
    encode: OnlineInputs | CachedInputs
    vae: RGBAVAE
    sampler_steps: int

    def inputs(self, batch: Batch) -> FlowBatch:
        """Tokens of all rows and states of their prompts."""
        return self.encode(batch)

    def flops(self, inputs: FlowBatch) -> float:
        """FLOPs of a step on these rows."""
        return flow_flops(self.config, inputs)

    def tokens(self, batch: Batch) -> int:
        """Image tokens of the batch's samples."""
        height, width = self._grid(batch)
        return int((batch.segments > 0).sum()) * height * width

    def sheet(self, params: Params, batch: Batch, inputs: FlowBatch, count: int) -> list[list[np.ndarray]]:
        """A line of each row's pictures, conditions included, and below it the line with sampled targets."""
        inputs = jax.tree.map(lambda x: x[:count], inputs)
        grid = self._grid(batch)
        length = batch.segments.shape[1] * grid[0] * grid[1]
        lines = []
        pairs = zip(np.asarray(inputs.clean), np.asarray(self._sample(params, inputs)), strict=True)
        for row, pair in enumerate(pairs):
            shown = batch.segments[row] > 0
            lines += [list(decoded(self.vae, unpack(x[:length], self.config.patch_size, grid))[shown]) for x in pair]
        return lines

    def export_config(self, params: Params, examples: Iterator[FlowBatch]) -> dict[str, Any]:
        """Nothing: the transformer keeps its config."""
        del params, examples
        return {}

    def _grid(self, batch: Batch) -> tuple[int, int]:
        """Tokens along height and width of the batch's pictures."""
        height, width = batch.pictures.shape[2:4]
        return height // self.encode.token_side, width // self.encode.token_side

    @functools.cached_property
    def _sample(self) -> Callable[[Params, FlowBatch], Array]:
        """Tokens denoised from noise, without guidance; compiled."""

        def sample(params: Params, batch: FlowBatch) -> Array:
            network = self.network(params)
            sigmas = jnp.repeat(jnp.linspace(1.0, 0.0, self.sampler_steps + 1)[:, None], len(batch.rows), axis=1)
            noise = jax.random.normal(jax.random.key(SEED), batch.clean.shape)
            kinds = batch.target_kinds if self.config.use_additional_t_cond else None

            def velocity(x: Array, sigma: Array) -> Array:
                return network(x, batch.text, batch.layout, sigma=sigma, target_kind=kinds)

            start = jnp.where(batch.is_target[..., None], noise, batch.clean)
            return euler(velocity, start, sigmas=sigmas, is_target=batch.is_target, step_inputs=sigmas[:-1])

        return jax.jit(sample)


def flow_stage(experiment: Experiment, mesh: Mesh, placement: RowPlacement, source: Any) -> tuple[FlowStage, Params]:
    """The stage and the parameters that it starts from.

    Raises:
      QilError: if cached latents were made with other encoders or settings than the experiment's.
    """
    start, dtype = experiment.start, jnp.dtype(experiment.precision)
    load = functools.partial(_load, experiment, mesh)
    config = MMDiTConfig.from_json(component_config(Path(start.checkpoint), Component.TRANSFORMER))
    vae_config = VAEConfig.from_json(component_config(Path(start.folder(Component.VAE)), Component.VAE))
    abstract = nnx.eval_shape(lambda: VLDMMDiT(config, rngs=nnx.Rngs(0)))
    network = Network(abstract)
    params = params_of(load(Component.TRANSFORMER, abstract, jnp.float32))
    vae = load(Component.VAE, nnx.eval_shape(lambda: RGBAVAE(vae_config, rngs=nnx.Rngs(0))), dtype)
    shape = TokenShape(
        scale=vae_config.scale_factor,
        patch=config.patch_size,
        text=experiment.data.text_tokens,
        ways=TRAINING_RULES.ways(Axis.TOKENS, mesh),
    )
    if experiment.data.inputs is Inputs.LATENTS:
        require_same_encoders(experiment, source)
        encode = CachedInputs(placement, shape, experiment.flow_loss, seed=experiment.seed)
    else:
        captions = _caption_encoder(experiment, mesh)
        loss, seed = experiment.flow_loss, experiment.seed
        encode = OnlineInputs(PictureEncoder(vae), captions, placement, shape, loss, seed=seed)
    compute = Compute(
        dtype=dtype,
        kind=experiment.attention,
        scan=Scan(remat=experiment.remat, unroll=experiment.unroll),
        constrain=constrain(mesh, TRAINING_RULES),
    )
    stage = FlowStage(
        network=network,
        config=config,
        objective=flow_objective(network, experiment.flow_loss, compute),
        encode=encode,
        vae=vae,
        sampler_steps=experiment.validation.steps,
    )
    return stage, params


def _caption_encoder(experiment: Experiment, mesh: Mesh) -> CaptionEncoder:
    folder = Path(experiment.start.checkpoint)
    config = Qwen2_5VLConfig.from_json(component_config(folder, Component.TEXT_ENCODER))
    abstract = nnx.eval_shape(lambda: TextEncoder(config, rngs=nnx.Rngs(0)))
    model = _load(experiment, mesh, Component.TEXT_ENCODER, abstract, jnp.dtype(experiment.precision))
    return CaptionEncoder(PromptTokenizer.load(folder), model, width=experiment.data.text_tokens)


def require_same_encoders(experiment: Experiment, source: Any) -> None:
    """Refuse cached latents of other encoders, another empty prompt or fewer text tokens than the experiment's."""
    start = experiment.start
    source.require(
        vae=fingerprint_of(Path(start.folder(Component.VAE)) / Component.VAE),
        text_encoder=fingerprint_of(Path(start.checkpoint) / Component.TEXT_ENCODER),
        no_prompt=experiment.flow_loss.no_prompt,
        text=experiment.data.text_tokens,
    )


def _load(experiment: Experiment, mesh: Mesh, component: Component, abstract: Model, dtype: Any) -> Model:
    """A component of the experiment's start, over the mesh."""
    folder = Path(experiment.start.folder(component)) / component
    return load_model(folder, abstract, mesh=mesh, rules=TRAINING_RULES, dtype=dtype)
