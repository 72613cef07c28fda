"""Tables of all tensors of a released checkpoint by component: name, shape, and corresponding parameter."""

from collections.abc import Mapping
from typing import Any

from qil_jax.models.quantised import Quantisation
from qil_jax.models.qwen2_5_vl import Qwen2_5VLConfig
from qil_jax.models.rgba_vae import VAEConfig
from qil_jax.models.vld_mmdit import MMDiTConfig
from qil_jax.weights.tables.entries import Component, Entry
from qil_jax.weights.tables.quantised import quantisation_of, quantised_table
from qil_jax.weights.tables.text_encoder import text_encoder_table
from qil_jax.weights.tables.transformer import transformer_table
from qil_jax.weights.tables.vae import vae_table

Config = MMDiTConfig | VAEConfig | Qwen2_5VLConfig
"""The parsed config of a component."""


def table_of(component: Component, config: Mapping[str, Any]) -> list[Entry]:
    """The tensor table of a component, derived from the content of its config.json.

    Raises:
      ConfigError: if the config is not one that the models support.
    """
    how = quantisation_of(component, config)
    return tensor_table(parsed_config(component, config), how)


def parsed_config(component: Component, config: Mapping[str, Any]) -> Config:
    """The parsed content of a component's config.json.

    Raises:
      ConfigError: if the config is not one that the models support.
    """
    match component:
        case Component.TRANSFORMER:
            return MMDiTConfig.from_json(config)
        case Component.VAE:
            return VAEConfig.from_json(config)
        case Component.TEXT_ENCODER:
            return Qwen2_5VLConfig.from_json(config)


def tensor_table(config: Config, how: Quantisation | None) -> list[Entry]:
    """The tensor table of a parsed config, whose linear maps are quantised as `how` says; None: they are not.

    Raises:
      ConfigError: if the config is not one that the models support.
    """
    match config:
        case MMDiTConfig():
            table = transformer_table(config)
        case VAEConfig():
            table = vae_table(config)
        case Qwen2_5VLConfig():
            table = text_encoder_table(config)
    return table if how is None else quantised_table(table, how)
