"""Checkpoints: key tables, streaming safetensors and orbax, checks, conversion."""

from qil_jax.weights.architecture import Architecture, TextEncoderPart, TransformerPart
from qil_jax.weights.checkpoint import Checkpoint
from qil_jax.weights.lora import LoRA, LowRank, read_lora, write_lora
from qil_jax.weights.lora_header import LoRAError
from qil_jax.weights.source import Layout
from qil_jax.weights.stored import StoredComponent
from qil_jax.weights.strict import WeightsError
from qil_jax.weights.structure import StructureError
from qil_jax.weights.tables.entries import Component

__all__ = [
    "Architecture",
    "Checkpoint",
    "Component",
    "Layout",
    "LoRA",
    "LoRAError",
    "LowRank",
    "StoredComponent",
    "StructureError",
    "TextEncoderPart",
    "TransformerPart",
    "WeightsError",
    "read_lora",
    "write_lora",
]
