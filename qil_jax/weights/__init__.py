"""Checkpoints: key tables, streaming safetensors and orbax, checks, conversion."""

from qil_jax.weights.identity import checkpoint_digest
from qil_jax.weights.load import load_model, open_source
from qil_jax.weights.source import Layout, layout_of
from qil_jax.weights.strict import WeightsError
from qil_jax.weights.structure import StructureError, checkpoint_problems, component_config, require_sound
from qil_jax.weights.tables.entries import Component

__all__ = [
    "Component",
    "Layout",
    "StructureError",
    "WeightsError",
    "checkpoint_digest",
    "checkpoint_problems",
    "component_config",
    "layout_of",
    "load_model",
    "open_source",
    "require_sound",
]
