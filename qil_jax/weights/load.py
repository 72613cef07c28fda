"""Loading of stored parameters onto a mesh; each device's shard is read directly from the files."""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, overload

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float

from qil_jax.mesh import Rules, shardings
from qil_jax.models.paths import slashed
from qil_jax.models.quantised import quantise
from qil_jax.models.qwen2_5_vl import Qwen2_5VLConfig, TextEncoder, VisionLanguage
from qil_jax.models.rgba_vae import RGBAVAE, VAEConfig
from qil_jax.models.vld_mmdit import MMDiTConfig, VLDMMDiT
from qil_jax.weights.assemble import Placed, assemble
from qil_jax.weights.extension import ExtendedSource
from qil_jax.weights.merge import Scaled, merged, require_fit
from qil_jax.weights.names import released_names
from qil_jax.weights.safetensors_io import TensorReader, stored_tensors
from qil_jax.weights.source import Layout, OrbaxSource, ParameterSource, SafetensorsSource, layout_of
from qil_jax.weights.structure import component_config
from qil_jax.weights.tables import table_of
from qil_jax.weights.tables.entries import Component, Target, targets
from qil_jax.weights.tables.quantised import quantisation_of


class TransformerPart(StrEnum):
    """A part of the transformer that is loaded on its own. The values are the names of its submodules."""

    MODULATION = "modulation"
    BACKBONE = "backbone"


class TextEncoderPart(StrEnum):
    """What is loaded of the text encoder in place of its language model alone."""

    VISION_LANGUAGE = "vision_language"  # all of it: language model, vision tower and output head


Part = Component | TransformerPart | TextEncoderPart
"""A component, or another module that is loaded from its folder."""
MODELS: Mapping[Component | TextEncoderPart, tuple[Any, Any]] = {
    Component.TRANSFORMER: (VLDMMDiT, MMDiTConfig),
    Component.VAE: (RGBAVAE, VAEConfig),
    Component.TEXT_ENCODER: (TextEncoder, Qwen2_5VLConfig),
    TextEncoderPart.VISION_LANGUAGE: (VisionLanguage, Qwen2_5VLConfig),
}
"""The module and the config class of each component."""


def open_source(folder: Path, component: Component) -> ParameterSource:
    """A reader of a component's parameters, for either layout.

    Raises:
      WeightsError: if the files cannot be read.
    """
    if layout_of(folder) is Layout.ORBAX:
        return OrbaxSource(folder)
    reader = TensorReader(stored_tensors(folder))
    names = {released: name for name, released in released_names(component, reader.tensors).items()}
    return SafetensorsSource(reader, names)


@overload
def abstract(component: Literal[Component.TRANSFORMER], config: Mapping[str, Any]) -> VLDMMDiT: ...
@overload
def abstract(component: Literal[Component.VAE], config: Mapping[str, Any]) -> RGBAVAE: ...
@overload
def abstract(component: Literal[Component.TEXT_ENCODER], config: Mapping[str, Any]) -> TextEncoder: ...
@overload
def abstract(component: TextEncoderPart, config: Mapping[str, Any]) -> VisionLanguage: ...
def abstract(component: Component | TextEncoderPart, config: Mapping[str, Any]) -> nnx.Module:
    """The module of a parsed config.json, with shapes in place of parameters.

    Raises:
      ConfigError: if the config is not one that the models support.
    """
    module, config_class = MODELS[component]
    parsed = config_class.from_json(config)
    made = nnx.eval_shape(lambda: module(parsed, rngs=nnx.Rngs(0)))
    how = quantisation_of(_component_of(component), config)
    if how is not None:  # the vision tower keeps full precision
        quantise(made.language if isinstance(made, VisionLanguage) else made, how)
    return made


def _component_of(part: Part) -> Component:
    """The component whose folder holds a part."""
    if isinstance(part, Component):
        return part
    return Component.TRANSFORMER if isinstance(part, TransformerPart) else Component.TEXT_ENCODER


def has_vision(checkpoint: Path) -> bool:
    """Whether a checkpoint can describe pictures: whether its language model knows the token of a picture.

    Every text encoder has a vision tower, but that of a small model may be a placeholder which nothing can read.

    Raises:
      ConfigError: if the text encoder's config is missing, or not one that the models support.
    """
    config = Qwen2_5VLConfig.from_json(component_config(checkpoint, Component.TEXT_ENCODER))
    return config.image_token_id < config.vocab_size


@overload
def load_component(
    checkpoint: Path,
    component: Literal[Component.TRANSFORMER] | TransformerPart,
    *,
    mesh: Mesh,
    rules: Rules,
    dtype: Any = None,
    config: Mapping[str, Any] | None = None,
    loras: Sequence[Scaled] = (),
) -> VLDMMDiT: ...
@overload
def load_component(
    checkpoint: Path,
    component: Literal[Component.VAE],
    *,
    mesh: Mesh,
    rules: Rules,
    dtype: Any = None,
    config: Mapping[str, Any] | None = None,
) -> RGBAVAE: ...
@overload
def load_component(
    checkpoint: Path,
    component: Literal[Component.TEXT_ENCODER],
    *,
    mesh: Mesh,
    rules: Rules,
    dtype: Any = None,
) -> TextEncoder: ...
@overload
def load_component(
    checkpoint: Path,
    component: TextEncoderPart,
    *,
    mesh: Mesh,
    rules: Rules,
    dtype: Any = None,
) -> VisionLanguage: ...
def load_component(
    checkpoint: Path,
    component: Part,
    *,
    mesh: Mesh,
    rules: Rules,
    dtype: Any = None,
    config: Mapping[str, Any] | None = None,
    loras: Sequence[Scaled] = (),
) -> nnx.Module:
    """Load one component of a checkpoint of either layout, with its parameters placed on the mesh.

    Only the module's parameters are read, in parallel, and of these each process reads its own shards; beside the
    parameters, host memory stays near the size of one block. All processes of the mesh must call this function.

    Args:
      checkpoint: folder that holds model_index.json.
      component: component or part to load; of a part of the transformer, the other parameters stay abstract.
      mesh: mesh on which the parameters are placed.
      rules: sharding rules that map logical axes to mesh axes.
      dtype: dtype of the loaded parameters, except quantised kernels and their scales; None: the stored dtype.
      config: config of the loaded component, such as `layered_config` of the stored one, where parameters that are not
        stored have their initial values; None: the stored config.
      loras: LoRAs of the transformer, each with a factor, which are added to the kernels as they are read: in fp32, and
        then rounded once.

    Raises:
      ConfigError: if the component's config is missing, or not one that the models support.
      LoRAError: if LoRAs do not fit the component; raised before any tensor of it is read.
      MeshError: if rules, mesh and shapes are inconsistent; raised before any tensor is read.
      WeightsError: if the files cannot be read.
    """
    prefix = f"{component}/" if isinstance(component, TransformerPart) else ""
    kind = Component.TRANSFORMER if isinstance(component, TransformerPart) else component
    component = _component_of(component)
    stored = component_config(checkpoint, component)
    config = stored if config is None else config
    module = abstract(kind, config)
    placements = shardings(module, mesh, rules)
    table = table_of(component, config)
    require_fit(component, table, loras)
    wanted = targets(table)
    source = ExtendedSource(open_source(checkpoint / component, component), targets(table_of(component, stored)))
    state = nnx.state(module, nnx.Param)
    parameters = {slashed(path): parameter for path, parameter in nnx.to_flat_state(state)}
    chosen = {
        path: _placed(source, wanted[path], placements[path], dtype, loras)
        for path in parameters
        if path.startswith(prefix)
    }
    for path, values in assemble(chosen).items():
        parameters[path].set_value(values)
    nnx.update(module, state)
    return module


def _placed(
    source: ParameterSource, target: Target, sharding: NamedSharding, dtype: Any | None, loras: Sequence[Scaled]
) -> Placed:
    stored = source.dtype(target)
    wanted = target.loaded_dtype(stored, dtype)
    return Placed(
        shape=target.shape,
        dtype=wanted,
        itemsize=stored.itemsize,
        sharding=sharding,
        read=lambda index: merged(source.read(target, index), target, index, loras, wanted),
    )


@overload
def abstract_component(
    checkpoint: Path, component: Literal[Component.TRANSFORMER], *, mesh: Mesh, rules: Rules, dtype: Any = None
) -> VLDMMDiT: ...
@overload
def abstract_component(
    checkpoint: Path, component: Literal[Component.VAE], *, mesh: Mesh, rules: Rules, dtype: Any = None
) -> RGBAVAE: ...
@overload
def abstract_component(
    checkpoint: Path, component: Literal[Component.TEXT_ENCODER], *, mesh: Mesh, rules: Rules, dtype: Any = None
) -> TextEncoder: ...
@overload
def abstract_component(
    checkpoint: Path, component: TextEncoderPart, *, mesh: Mesh, rules: Rules, dtype: Any = None
) -> VisionLanguage: ...
def abstract_component(
    checkpoint: Path, component: Component | TextEncoderPart, *, mesh: Mesh, rules: Rules, dtype: Any = None
) -> nnx.Module:
    """The module that `load_component` returns, with shapes, dtypes and shardings in place of parameters."""
    kind, component = component, _component_of(component)
    config = component_config(checkpoint, component)
    module = abstract(kind, config)
    placements, wanted = shardings(module, mesh, rules), targets(table_of(component, config))
    source = open_source(checkpoint / component, component)
    state = nnx.state(module, nnx.Param)
    for path, parameter in nnx.to_flat_state(state):
        name = slashed(path)
        kind = wanted[name].loaded_dtype(source.dtype(wanted[name]), dtype)
        parameter.set_value(jax.ShapeDtypeStruct(parameter.shape, kind, sharding=placements[name]))
    nnx.update(module, state)
    return module


class MergedParams(Mapping[str, np.ndarray]):
    """The fp32 kernels of a stored transformer that LoRAs change, by path; each is read and changed on access."""

    def __init__(self, checkpoint: Path, loras: Sequence[Scaled]):
        """Open the checkpoint; `loras` are LoRAs, each with its factor.

        Raises:
          LoRAError: if LoRAs do not fit the transformer.
          WeightsError: if the files cannot be read.
        """
        component = Component.TRANSFORMER
        table = table_of(component, component_config(checkpoint, component))
        require_fit(component, table, loras)
        self._source, self._loras = open_source(checkpoint / component, component), loras
        changed = {f"{module}.weight" for lora, _ in loras for module in lora.changes}
        self._targets = {
            path: target for path, target in targets(table).items() if any(e.name in changed for e in target.entries)
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def __contains__(self, path: object) -> bool:
        return path in self._targets

    def __getitem__(self, path: str) -> Float[np.ndarray, "..."]:
        target = self._targets[path]
        whole = tuple(map(slice, target.shape))
        return merged(self._source.read(target, whole), target, whole, self._loras, np.float32)
