"""The programs of inference at the released size with shapes in place of arrays: what `qil decompose` compiles."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qil_jax.choices import Passes
from qil_jax.encoders.lengths import image_bucket, round_up
from qil_jax.errors import QilError
from qil_jax.flow import Rescale
from qil_jax.inference.batch import SequenceBatch, Ways
from qil_jax.inference.denoiser import Denoiser
from qil_jax.kernels import Spread, attend_for
from qil_jax.mesh import MeshShape, Sharding, Task, Weights, make_mesh, rules_for
from qil_jax.models.attention import AttentionKind
from qil_jax.models.quantised import Quantisation, quantise
from qil_jax.models.vld_mmdit import MMDiTConfig, TokenLayout, VLDMMDiT
from qil_jax.planning.abstract import cast, device_bytes, fresh_network, network, place_shapes, placed_shapes
from qil_jax.planning.cache import Results, planned
from qil_jax.planning.chips import Topology
from qil_jax.planning.devices import compile_only_devices, places
from qil_jax.planning.flops import forward_flops
from qil_jax.planning.result import Result, Subject
from qil_jax.strict_json import read_json
from qil_jax.weights import Architecture, Component

STEPS = 50
"""Steps of the sampler: they set the size of the modulation table only."""
PIXELS = 16
"""Side of the square that an image token covers, in pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferencePlan:
    """A denoise step that is to be planned.

    Attributes:
      topology: slice.
      mesh: sizes of the mesh's axes.
      transformer: config.json of a transformer; None: that of the release.
      layers: number of layers of each picture, beside its composite.
      resolution: side of the square pictures in pixels.
      batch: number of pictures at a time.
      guidance: whether each step has a conditional and an unconditional pass.
      text: number of text tokens.
      passes: how the passes of guidance are computed.
      attention, spread: implementation of attention, and how it meets tokens of other devices.
      weights: what the devices along the axis context hold of the kernels.
      quantize: format of the quantised kernels; None: bf16.
      keep_modulation, keep_text_encoder: whether these stay in device memory while the step runs.
    """

    topology: str
    mesh: MeshShape
    transformer: Path | None = None
    layers: int = 4
    resolution: int = 640
    batch: int = 1
    guidance: bool = True
    text: int = 512
    passes: Passes = Passes.BATCH
    attention: AttentionKind = AttentionKind.SPLASH
    spread: Spread = Spread.ULYSSES
    weights: Weights = Weights.SPLIT
    quantize: Quantisation | None = None
    keep_modulation: bool = False
    keep_text_encoder: bool = False

    @property
    def image_tokens(self) -> int:
        """Number of image tokens of a picture: composite, layers and condition."""
        return self.tokens(layers=self.layers, resolution=self.resolution)

    @staticmethod
    def tokens(*, layers: int, resolution: int) -> int:
        """Number of image tokens of a square picture with so many layers, its composite and its condition."""
        return (layers + 2) * (resolution // PIXELS) ** 2


def plan_inference(plan: InferencePlan, *, effort: float = 0.0, kept: Results | None = None) -> Result:
    """Compile the denoise step and read the program.

    Args:
      plan: what is planned.
      effort: effort of the compiler; below 0 only memory is read.
      kept: earlier results; that of the same program is returned, a new one is added.

    Raises:
      QilError: if the compiler is missing, or topology, mesh, rules or attention do not fit one another.
    """
    topology = Topology.parse(plan.topology)
    mesh = make_mesh(plan.mesh, compile_only_devices(topology))
    sharding = Sharding(mesh, rules_for(Task.INFERENCE, plan.weights))
    denoiser = abstract_denoiser(plan, sharding)
    step = lowered_step(denoiser, abstract_batch(plan, denoiser.config, Ways.of(sharding, plan.passes)))
    passes = 2 if plan.guidance else 1
    flops = plan.batch * passes * forward_flops(denoiser.config, image=plan.image_tokens, text=plan.text)
    subject = Subject(
        topology=topology,
        mesh={str(axis): size for axis, size in mesh.shape.items()},
        places=places(list(mesh.devices.flat), topology),
        minimum_flops=flops,
        beside=beside(plan, denoiser, sharding),
    )
    return planned(step, subject, name=name_of(plan), effort=effort, kept=kept)


def name_of(plan: InferencePlan) -> str:
    """A plan in words, without defaults."""
    sizes = dataclasses.asdict(plan.mesh).items()
    words = [plan.topology, ",".join(f"{axis}={size}" for axis, size in sizes if size > 1) or "one device"]
    words += [str(plan.transformer)] if plan.transformer is not None else []
    words += [f"layers {plan.layers}", f"resolution {plan.resolution}"]
    words += [f"batch {plan.batch}"] if plan.batch > 1 else []
    words += [] if plan.guidance else ["no guidance"]
    words += [f"passes {plan.passes}"] if plan.passes is not Passes.BATCH else []
    words += [f"text {plan.text}"] if plan.text != InferencePlan.text else []
    words += [str(plan.attention)] if plan.attention is not InferencePlan.attention else []
    if plan.mesh.context > 1:
        words += [str(plan.spread), f"weights {plan.weights}"]
    words += [str(plan.quantize)] if plan.quantize is not None else []
    words += ["with modulation"] if plan.keep_modulation else []
    words += ["with text encoder"] if plan.keep_text_encoder else []
    return " ".join(words)


def abstract_denoiser(plan: InferencePlan, sharding: Sharding) -> Denoiser:
    """The denoiser of the released size on a mesh, whose parameters are shapes.

    Raises:
      MeshError: if rules, heads or kernels do not fit the mesh.
    """
    model = transformer_of(plan)
    attend = attend_for(plan.attention, plan.spread, heads=model.config.num_attention_heads, sharding=sharding)
    cast(model, jnp.bfloat16)
    if plan.quantize is not None:
        quantise(model, plan.quantize)
    place_shapes(model, sharding)
    return Denoiser(model, sharding=sharding, attend=attend, passes=plan.passes)


def lowered_step(denoiser: Denoiser, batch: SequenceBatch) -> jax.stages.Lowered:
    """The program of one step.

    Raises:
      QilError: if a library of the attention kernel is missing.
    """
    try:
        return denoiser.lower(batch, Rescale.NORM)[1]
    except RuntimeError as error:
        if "cuDNN" not in str(error):
            raise
        raise QilError(f"{error} pip install 'qil_jax[cuda]', or use --attention xla_chunked") from error


def transformer_of(plan: InferencePlan) -> VLDMMDiT:
    """The transformer of a plan, without parameters.

    Raises:
      ConfigError: if its config.json is not one that the models support.
      QilError: if there is no such file, or it is not JSON.
    """
    if plan.transformer is None:
        return fresh_network(Component.TRANSFORMER)
    fix = "give a transformer/config.json"
    try:
        return Architecture(Component.TRANSFORMER, read_json(plan.transformer, fix=fix)).abstract()
    except OSError as error:
        raise QilError(f"{plan.transformer}: cannot be read ({error.strerror}); {fix}") from error


def abstract_batch(plan: InferencePlan, config: MMDiTConfig, ways: Ways) -> SequenceBatch:
    """The shapes of the batch that `build_batch` makes of such pictures, all of one size."""
    passes = 2 if plan.guidance else 1
    unit = math.lcm(ways.samples, ways.rows // math.gcd(ways.rows, passes))
    samples = round_up(plan.batch, unit)
    rows, image = passes * samples, round_up(image_bucket(plan.image_tokens), ways.tokens)
    text = round_up(plan.text, ways.tokens)

    def shape(*sizes: int, dtype: Any = np.int32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    return SequenceBatch(
        tokens=shape(samples, image, config.in_channels, dtype=np.float32),
        is_target=shape(samples, image, dtype=bool),
        sigmas=shape(STEPS + 1, samples, dtype=np.float32),
        scales=shape(samples, dtype=np.float32),
        text=shape(rows, text, config.joint_attention_dim, dtype=np.float32),
        layout=TokenLayout(
            image_positions=shape(rows, image, 3),
            text_positions=shape(rows, text, 3),
            image_segments=shape(rows, image),
            text_segments=shape(rows, text),
        ),
    )


def beside(plan: InferencePlan, denoiser: Denoiser, sharding: Sharding) -> dict[str, int]:
    """Bytes on one device of what stays there beside the denoise step: the VAE, and what the plan keeps."""
    found = {"VAE": device_bytes(placed_shapes(network(Component.VAE), sharding, jnp.bfloat16))}
    if plan.keep_modulation:
        found["modulation"] = device_bytes(denoiser.modulator.state)
    if plan.keep_text_encoder:
        found["text encoder"] = device_bytes(placed_shapes(network(Component.TEXT_ENCODER), sharding, jnp.bfloat16))
    return found
