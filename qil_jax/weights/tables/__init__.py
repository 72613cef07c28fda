"""Tables of all tensors of a released checkpoint by component: name, shape, and corresponding parameter."""

from collections.abc import Mapping
from typing import Any

from qil_jax.models.qwen2_5_vl import Qwen2_5VLConfig
from qil_jax.models.rgba_vae import VAEConfig
from qil_jax.models.vld_mmdit import MMDiTConfig
from qil_jax.weights.tables.entries import Component, Entry
from qil_jax.weights.tables.quantised import quantisation_of, quantised_table
from qil_jax.weights.tables.text_encoder import text_encoder_table
from qil_jax.weights.tables.transformer import transformer_table
from qil_jax.weights.tables.vae import vae_table


def table_of(component: Component, config: Mapping[str, Any]) -> list[Entry]:
    """The tensor table of a component, derived from its parsed config.json.

    Raises:
      ConfigError: if the config is not one that the models support.
    """
    how = quantisation_of(component, config)
    table = _full_precision(component, config)
    return table if how is None else quantised_table(table, how)


def _full_precision(component: Component, config: Mapping[str, Any]) -> list[Entry]:
    match component:
        case Component.TRANSFORMER:
            return transformer_table(MMDiTConfig.from_json(config))
        case Component.VAE:
            return vae_table(VAEConfig.from_json(config))
        case Component.TEXT_ENCODER:
            return text_encoder_table(Qwen2_5VLConfig.from_json(config))
