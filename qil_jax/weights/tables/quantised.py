"""Tables of quantised components: the scales of their linear maps, and the mark in config.json by which they are known.

A map NAME is stored as NAME.weight, whose elements have one byte, and NAME.weight_scale, an fp32 factor per output
channel: weight = NAME.weight * NAME.weight_scale[:, None].
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from qil_jax.choices import Quantisation
from qil_jax.models.config import ConfigError, shown
from qil_jax.programs import called
from qil_jax.weights.tables.entries import Component, Entry, Transform, plain

CONFIG_KEY = "quantization_config"
"""The key of config.json that marks a quantised component. Loaders of diffusers and transformers read the same key, and
refuse a method that they do not know."""
METHOD = "qil_weight_only"
SCALE = "_scale"
"""What the name of a scale adds to that of its weight."""
QUANTISABLE = (Component.TRANSFORMER, Component.TEXT_ENCODER)


def quantisation_of(component: Component, config: Mapping[str, Any]) -> Quantisation | None:
    """How a component is quantised according to its config.json; None: it is not.

    Raises:
      ConfigError: if it is quantised in any other way than that of `quantised_config`.
    """
    mark = config.get(CONFIG_KEY)
    if mark is None:
        return None
    known = [how for how in Quantisation if mark == _mark(how)]
    if not known or component not in QUANTISABLE:
        raise ConfigError(
            f"{component}/config.json: {CONFIG_KEY} {shown(mark)} is not read: give a checkpoint of full precision, or "
            f"one that {called('convert quantize')} made of it"
        )
    return known[0]


def quantised_config(config: Mapping[str, Any], how: Quantisation) -> dict[str, Any]:
    """The content of a component's config.json once it is quantised."""
    return {**config, CONFIG_KEY: _mark(how)}


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a component's config.json without the mark."""
    return {key: value for key, value in config.items() if key != CONFIG_KEY}


def _mark(how: Quantisation) -> dict[str, str]:
    return {"quant_method": METHOD, "dtype": how.value}


def quantised_table(table: Iterable[Entry], how: Quantisation) -> list[Entry]:
    """The table of a quantised component: its linear maps in blocks have another dtype, and scales."""
    entries = []
    for entry in table:
        if not is_quantisable(entry):
            entries.append(entry)
            continue
        scale = plain(entry.name + SCALE, f"{entry.path.removesuffix('/kernel')}/scale", entry.shape[:1], entry.block)
        entries += [dataclasses.replace(entry, dtype=how.dtype)]
        entries += [dataclasses.replace(scale, dtype=np.dtype(np.float32))]
    return entries


def is_quantisable(entry: Entry) -> bool:
    """Whether a tensor is the weight of a linear map in a stack, other than the vision tower's."""
    return entry.transform is Transform.LINEAR and entry.block is not None and not entry.path.startswith("visual/")


def is_quantised(entry: Entry) -> bool:
    """Whether a tensor is the weight of a quantised linear map."""
    return entry.dtype is not None and not is_scale(entry)


def is_scale(entry: Entry) -> bool:
    """Whether a tensor holds the scales of a quantised linear map."""
    return entry.dtype is not None and entry.name.endswith(SCALE)
