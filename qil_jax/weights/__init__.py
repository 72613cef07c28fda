"""Checkpoints: key tables, streaming safetensors and orbax, checks, conversion."""

from qil_jax.weights.identity import fingerprint
from qil_jax.weights.load import (
    TextEncoderPart,
    TransformerPart,
    abstract,
    abstract_component,
    has_vision,
    load_component,
    open_source,
)
from qil_jax.weights.lora import LoRA, LowRank, read_lora, write_lora
from qil_jax.weights.lora_header import LoRAError
from qil_jax.weights.source import Layout, layout_of
from qil_jax.weights.strict import WeightsError
from qil_jax.weights.structure import StructureError, checkpoint_problems, component_config, require_sound
from qil_jax.weights.tables.entries import Component

__all__ = [
    "Component",
    "Layout",
    "LoRA",
    "LoRAError",
    "LowRank",
    "StructureError",
    "TextEncoderPart",
    "TransformerPart",
    "WeightsError",
    "abstract",
    "abstract_component",
    "checkpoint_problems",
    "component_config",
    "fingerprint",
    "has_vision",
    "layout_of",
    "load_component",
    "open_source",
    "read_lora",
    "require_sound",
    "write_lora",
]
