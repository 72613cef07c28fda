"""Everything that a run needs before its first step, checked before anything is computed."""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from qil_jax.encoders.tokenizer import PromptTokenizer
from qil_jax.flow.loss import FlowLoss
from qil_jax.loader.batch import Batch
from qil_jax.loader.loader import Loader
from qil_jax.loader.samples import SampleSource
from qil_jax.mesh import TRAINING_RULES, constrain
from qil_jax.models.axes import Axis
from qil_jax.models.config import ConfigError
from qil_jax.models.lpips import lpips
from qil_jax.models.qwen2_5_vl import Qwen2_5VLConfig, TextEncoder
from qil_jax.models.rgba_vae import RGBAVAE, VAEConfig, extend_rgb_to_rgba
from qil_jax.models.stack import Scan
from qil_jax.models.vld_mmdit import MMDiTConfig, VLDMMDiT
from qil_jax.training.batches import FlowBatch, PictureBatch, RowPlacement
from qil_jax.training.data import training_data, validation_data
from qil_jax.training.experiment import Experiment, ExperimentError, refusing
from qil_jax.training.inputs import (
    CachedInputs,
    CaptionEncoder,
    OnlineInputs,
    PictureEncoder,
    TokenShape,
    picture_batch,
)
from qil_jax.training.objectives import Compute, Objective, flow_objective, vae_objective
from qil_jax.training.parameters import Network, Params, copied, params_of, training_network
from qil_jax.training.stages import Inputs, Stage
from qil_jax.training.vae_loss import Perception, VAELoss
from qil_jax.weights import Component, StructureError, component_config, fingerprint, load_component, require_sound
from qil_jax.weights.lpips import load_lpips

ORIGIN = "training.json"
"""File of a checkpoint folder that says which stage wrote it."""
StepBatch = FlowBatch | PictureBatch


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """A run, ready to begin.

    Attributes:
      network: the trained model without its parameters.
      params, frozen: its parameters; together they are all of them.
      validating: batches of the validation split, None where validation is off.
      inputs: this process's batch to what the step reads.
      flops: of a step on a batch of this shape, forward and backward; without what remat computes again.
      vae: the frozen RGBA-VAE of a diffusion stage, None if latents are cached and its decoder is not asked for.
    """

    experiment: Experiment
    mesh: Mesh
    placement: RowPlacement
    source: SampleSource
    loader: Loader
    validating: Loader | None
    network: Network[Any]
    params: Params
    frozen: Params
    objective: Objective
    inputs: Callable[[Batch], StepBatch]
    flops: Callable[[StepBatch], float]
    shape: TokenShape
    vae: RGBAVAE | None


def prepare(experiment: Experiment, mesh: Mesh) -> Parts:
    """Check, open and load everything.

    Raises:
      ExperimentError: if something is not there, the start does not suit the stage, or records lack what tasks need.
      ValueError: StructureError, ConfigError and MeshError, as their functions say.
    """
    require_inputs(experiment)
    placement = RowPlacement(mesh, TRAINING_RULES, experiment.data.loader.rows)
    processes, validation = placement.processes, experiment.validation
    asked = (
        lambda: check_start(experiment),
        lambda: training_data(experiment, processes),
        lambda: validation_data(experiment, processes) if validation.every else None,
    )
    _, (source, loader), validating = _all_of(asked)
    made = _vae_parts if experiment.stage is Stage.RGBA_VAE else _flow_parts
    return Parts(
        experiment=experiment,
        mesh=mesh,
        placement=placement,
        source=source,
        loader=loader,
        validating=validating,
        **made(experiment, mesh, placement, source),
    )


def _all_of(asked: Sequence[Callable[[], Any]]) -> list[Any]:
    """All the answers; if some refuse, all that they complain of."""
    answers, errors = [], []
    for ask in asked:
        try:
            answers.append(ask())
        except (ExperimentError, StructureError, ConfigError) as error:
            errors.append(error)
    if len(errors) > 1:
        raise ExperimentError("\n".join(dict.fromkeys(map(str, errors))))
    if errors:
        raise errors[0]
    return answers


def require_inputs(experiment: Experiment) -> None:
    """Refuse folders that are not there and of which the config knows how they are made: the message says how.

    Raises:
      ExperimentError: with the commands, in their order, that make what is missing.
    """
    start, known = experiment.start, {made.folder: made for made in experiment.made_by}
    parts = (Component.VAE,) if experiment.stage is Stage.RGBA_VAE else tuple(Component)
    wanted = dict.fromkeys([*experiment.data.sources, *(start.folder(part) for part in parts)])
    missing = [folder for folder in wanted if not epath.Path(folder).exists()]

    def commands(folder: str) -> Iterator[str]:
        if folder in known and not epath.Path(folder).exists():
            for needed in known[folder].needs:
                yield from commands(needed)
            yield known[folder].command

    steps = dict.fromkeys(command for folder in missing for command in commands(folder))
    if steps:
        problems = [f"{folder}: there is no such folder" for folder in missing if folder not in known]
        made = " and ".join(folder for folder in missing if folder in known)
        problems.append(f"{made} must be made first, by these commands in this order:\n  " + "\n  ".join(steps))
        raise ExperimentError("\n".join(problems))


def check_start(experiment: Experiment) -> None:
    """Refuse to start a stage from a checkpoint that is none, or of a stage that does not lead here."""
    stage = experiment.stage
    for component in (Component.VAE,) if stage is Stage.RGBA_VAE else tuple(Component):
        folder = Path(experiment.start.folder(component))
        require_sound(folder)
        if component is not stage.component:
            continue
        origin = origin_of(folder)
        if origin is not None and origin not in stage.predecessors:
            allowed = ", ".join(stage.predecessors)
            raise ExperimentError(
                f"{folder}: its {component} was trained by {origin}, and {stage} starts from {allowed}, or from a "
                f"checkpoint that no stage wrote: set start.checkpoint to one of these"
            )
    if stage is not Stage.RGBA_VAE:
        config = component_config(Path(experiment.start.folder(Component.VAE)), Component.VAE)
        if config.get("input_channels", 3) != 4:
            raise ExperimentError(
                f"{experiment.start.folder(Component.VAE)}: its VAE has {config.get('input_channels', 3)} channels, "
                f"{stage} needs an RGBA-VAE: train the stage rgba_vae first and set start.vae to its checkpoint/"
            )


def origin_of(folder: Path) -> Stage | None:
    """The stage that trained a checkpoint's transformer or, if it is one of the RGBA-VAE, its VAE; None: none did."""
    file = folder / ORIGIN
    if not file.is_file():
        return None
    try:
        return Stage(json.loads(file.read_text())["stage"])
    except (ValueError, KeyError, TypeError) as error:
        raise ExperimentError(
            f"{file}: names no stage ({error}): give another checkpoint, or remove the file if no stage wrote this one"
        ) from error


def _load(folder: str, component: Component, abstract: Any, mesh: Mesh, dtype: Any) -> Any:
    return load_component(Path(folder), component, mesh=mesh, rules=TRAINING_RULES, dtype=dtype)


def _split(experiment: Experiment, params: Params) -> tuple[Params, Params]:
    """Trained and frozen parameters."""
    pattern = re.compile(experiment.trainable)
    trained = {path: value for path, value in params.items() if pattern.search(path)}
    if not trained:
        raise ExperimentError(f"trainable '{experiment.trainable}' fits no parameter, such as {next(iter(params))}")
    return trained, {path: value for path, value in params.items() if path not in trained}


def _vae_parts(experiment: Experiment, mesh: Mesh, placement: RowPlacement, source: Any) -> dict[str, Any]:
    folder = experiment.start.folder(Component.VAE)
    config = VAEConfig.from_json(component_config(Path(folder), Component.VAE))
    abstract = nnx.eval_shape(lambda: RGBAVAE(config, rngs=nnx.Rngs(0)))
    vae = _load(folder, Component.VAE, abstract, mesh, jnp.float32)
    if config.input_channels == 3:
        vae = extend_rgb_to_rgba(vae)
    loss = experiment.loss
    assert isinstance(loss, VAELoss)
    network = training_network(vae)
    params, frozen = _split(experiment, params_of(vae))
    reference = copied({**params, **frozen}) if loss.reference_kl else None
    dtype = jnp.dtype(experiment.precision)
    objective = vae_objective(network, loss, dtype=dtype, reference=reference, perception=load_perception(loss))
    return {
        "network": network,
        "params": params,
        "frozen": frozen,
        "objective": objective,
        "inputs": lambda batch: picture_batch(batch, placement),
        "flops": lambda batch: vae_flops(vae, batch.pixels.shape),
        "shape": TokenShape(scale=vae.config.scale_factor, patch=1, text=0),
        "vae": None,
    }


def load_perception(loss: VAELoss) -> Perception | None:
    """LPIPS, if it has a weight and its file is there; else a line says that the term is off."""
    if not loss.perceptual:
        return None
    if loss.perceptual_weights is None or not Path(loss.perceptual_weights).is_file():
        where = loss.perceptual_weights or "loss.perceptual_weights is not set"
        print(f"the perceptual term is off: {where}: tools/convert_lpips.py makes the file", flush=True)
        return None
    weights, backbone = load_lpips(Path(loss.perceptual_weights))
    return functools.partial(lpips, weights, backbone)


def _flow_parts(experiment: Experiment, mesh: Mesh, placement: RowPlacement, source: Any) -> dict[str, Any]:
    start, loss = experiment.start, experiment.loss
    assert isinstance(loss, FlowLoss)
    dtype = jnp.dtype(experiment.precision)
    config = MMDiTConfig.from_json(component_config(Path(start.checkpoint), Component.TRANSFORMER))
    vae_config = VAEConfig.from_json(component_config(Path(start.folder(Component.VAE)), Component.VAE))
    shape = TokenShape(
        scale=vae_config.scale_factor,
        patch=config.patch_size,
        text=experiment.data.text_tokens,
        ways=TRAINING_RULES.ways(Axis.TOKENS, mesh),
    )
    abstract = nnx.eval_shape(lambda: VLDMMDiT(config, rngs=nnx.Rngs(0)))
    network = training_network(abstract)
    model = _load(start.checkpoint, Component.TRANSFORMER, abstract, mesh, jnp.float32)
    params, frozen = _split(experiment, params_of(model))
    compute = Compute(
        dtype=dtype,
        kind=experiment.attention,
        scan=Scan(remat=experiment.remat, unroll=experiment.unroll),
        constrain=constrain(mesh, TRAINING_RULES),
    )
    abstract_vae = nnx.eval_shape(lambda: RGBAVAE(vae_config, rngs=nnx.Rngs(0)))
    vae = _load(start.folder(Component.VAE), Component.VAE, abstract_vae, mesh, dtype)
    if experiment.data.inputs is Inputs.LATENTS:
        vae_folder, text_folder = Path(start.folder(Component.VAE)), Path(start.checkpoint)
        with refusing():
            source.require_encoders(
                vae=fingerprint(vae_folder, (Component.VAE,)),
                text_encoder=fingerprint(text_folder, (Component.TEXT_ENCODER,)),
                no_prompt=loss.no_prompt,
                text=shape.text,
            )
        inputs = CachedInputs(placement, shape, loss, seed=experiment.seed)
    else:
        text_config = Qwen2_5VLConfig.from_json(component_config(Path(start.checkpoint), Component.TEXT_ENCODER))
        abstract_text = nnx.eval_shape(lambda: TextEncoder(text_config, rngs=nnx.Rngs(0)))
        text = _load(start.checkpoint, Component.TEXT_ENCODER, abstract_text, mesh, dtype)
        with refusing():
            tokenizer = PromptTokenizer.load(Path(start.checkpoint))
        captions = CaptionEncoder(tokenizer, text, width=shape.text)
        inputs = OnlineInputs(PictureEncoder(vae), captions, placement, shape, loss, seed=experiment.seed)
    return {
        "network": network,
        "params": params,
        "frozen": frozen,
        "objective": flow_objective(network, loss, compute),
        "inputs": inputs,
        "flops": lambda batch: flow_flops(config, batch),
        "shape": shape,
        "vae": vae,
    }


def flow_flops(config: MMDiTConfig, batch: FlowBatch) -> float:
    """Of a training step of the transformer: three times the products of a forward pass."""
    rows, image = batch.clean.shape[:2]
    text, d = batch.text.shape[1], config.width
    per_block = 2 * 12 * d**2 * (image + text) + 4 * (image + text) ** 2 * d + 2 * 12 * d**2
    ends = 2 * d * (2 * config.in_channels * image + config.joint_attention_dim * text)
    return 3.0 * rows * (config.num_layers * per_block + ends)


def vae_flops(vae: RGBAVAE, shape: tuple[int, ...]) -> float:
    """Of a training step on pictures of this shape [b, y, x, c]: three times the convolutions of a forward pass."""
    total, down = 0.0, math.prod(shape[:3])
    for name, module in nnx.iter_modules(vae):
        if isinstance(module, nnx.Conv | nnx.Linear):
            kernel = module.kernel[...]
            scale = 4 ** _halvings(name, vae)
            total += 2 * kernel.size * down / scale
    return 3.0 * total


def _halvings(path: tuple[Any, ...], vae: RGBAVAE) -> int:
    """How often the picture has been halved where a layer of the VAE stands."""
    levels = len(vae.config.dim_mult) - 1
    if path[0] == "decoder" and path[1] == "up":
        return levels - int(path[2])
    if path[0] == "encoder" and path[1] == "down":
        return min(levels, int(path[2]) // (vae.config.num_res_blocks + 1))
    return 0 if path[:2] in (("encoder", "conv_in"), ("decoder", "conv_out")) else levels
