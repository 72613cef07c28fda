"""A component's architecture: the parsed config, tensor table and abstract module that follow from its config.json."""

import functools
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from flax import nnx

from qil_jax.models.quantised import Quantisation, quantise
from qil_jax.models.qwen2_5_vl import TextEncoder, VisionLanguage
from qil_jax.models.rgba_vae import RGBAVAE
from qil_jax.models.vld_mmdit import VLDMMDiT
from qil_jax.weights.tables import parsed_config, tensor_table
from qil_jax.weights.tables.entries import Component, Entry, Target, targets
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


def component_of(part: Part) -> Component:
    """The component whose folder holds a part."""
    if isinstance(part, Component):
        return part
    return Component.TRANSFORMER if isinstance(part, TransformerPart) else Component.TEXT_ENCODER


MODULES: Mapping[Component | TextEncoderPart, Any] = {
    Component.TRANSFORMER: VLDMMDiT,
    Component.VAE: RGBAVAE,
    Component.TEXT_ENCODER: TextEncoder,
    TextEncoderPart.VISION_LANGUAGE: VisionLanguage,
}

LAYERED = {
    Component.TRANSFORMER: {"use_additional_t_cond": True, "use_layer3d_rope": True},
    Component.VAE: {"input_channels": 4},
    Component.TEXT_ENCODER: {},
}
"""The entries of config.json by which the components of a layered model differ from those of Qwen-Image."""


class Architecture:
    """The architecture that the content of a config.json describes.

    What follows from it is derived once, when it is asked for; a ConfigError is raised if the config is not one that
    the models support.

    Attributes:
      component: component that is described.
      json: content of its config.json.
    """

    def __init__(self, component: Component, json: Mapping[str, Any]):
        self.component, self.json = component, json
        self._modules: dict[Part, nnx.Module] = {}

    @functools.cached_property
    def config(self) -> Any:
        """The parsed config: an MMDiTConfig, a VAEConfig or a Qwen2_5VLConfig."""
        return parsed_config(self.component, self.json)

    @functools.cached_property
    def quantisation(self) -> Quantisation | None:
        """How linear maps are quantised; None: they are not."""
        return quantisation_of(self.component, self.json)

    @functools.cached_property
    def table(self) -> list[Entry]:
        """The table of all stored tensors."""
        how = self.quantisation
        return tensor_table(self.config, how)

    @functools.cached_property
    def targets(self) -> dict[str, Target]:
        """The parameters by path."""
        return targets(self.table)

    @functools.cached_property
    def layered(self) -> "Architecture":
        """The architecture as that of a layered model: itself, or what a component of Qwen-Image is extended to."""
        json = {**self.json, **LAYERED[self.component]}
        return self if json == self.json else Architecture(self.component, json)

    def abstract(self, part: Part | None = None) -> Any:
        """A module with shapes in place of parameters, which the caller may change.

        Args:
          part: part of the component, where it is a module of another class; None: the component itself.
        """
        kind = part if isinstance(part, TextEncoderPart) else self.component
        if kind not in self._modules:
            self._modules[kind] = self._made(kind)
        return nnx.clone(self._modules[kind])

    def _made(self, kind: Component | TextEncoderPart) -> nnx.Module:
        config = self.config
        made = nnx.eval_shape(lambda: MODULES[kind](config, rngs=nnx.Rngs(0)))
        if self.quantisation is not None:  # the vision tower keeps full precision
            quantise(made.language if isinstance(made, VisionLanguage) else made, self.quantisation)
        return made
