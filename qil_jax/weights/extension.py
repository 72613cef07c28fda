"""Extension of Qwen-Image's components to those of a layered model: the values of new parameters.

The VAE gets an alpha channel as in arXiv 2512.15603, section 3.1. The paper does not describe how the transformer
begins; here the embedding of the target kind begins at zero, so that on a single picture the layered transformer equals
Qwen-Image's (docs/specification.md, 4).
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped

from qil_jax.weights.architecture import LAYERED, Architecture
from qil_jax.weights.source import ParameterSource
from qil_jax.weights.tables.entries import Target

INITIAL = {
    "modulation/addition/embedding": 0.0,
    "encoder/conv_in/kernel": 0.0,
    "decoder/conv_out/kernel": 0.0,
    "decoder/conv_out/bias": 1.0,
}
"""The value of the new elements of each parameter that is extended: a new picture channel is ignored, and decodes to 1,
which is opaque."""


def new_parts(before: Architecture) -> dict[str, bool | int | float]:
    """The changed entries of a component's config and the new elements of its parameters, if it becomes layered.

    Args:
      before: architecture of a component of a model.

    Returns:
      Values by the name of the entry, such as use_layer3d_rope, or by the elements of the parameter, such as
      decoder/conv_out/bias[3:]; empty for a component of a layered model.

    Raises:
      ConfigError: if the config is not one that the models support.
    """
    changes = LAYERED[before.component]
    new: dict[str, bool | int | float] = {k: v for k, v in changes.items() if before.json.get(k) != v}
    for path, target in before.layered.targets.items():
        stored = before.targets[path].shape if path in before.targets else ()
        if stored != target.shape:
            new[f"{path}{_beyond(stored, target.shape)}"] = INITIAL[path]
    return new


def _beyond(stored: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """The index of the new elements of an extended parameter; empty if all of them are new."""
    if not stored:
        return ""
    return f"[{', '.join(':' if a == b else f'{a}:' for a, b in zip(stored, shape, strict=True))}]"


class ExtendedSource:
    """A reader of parameters whose shapes may exceed the stored ones; new elements have their initial values."""

    def __init__(self, source: ParameterSource, stored: Mapping[str, Target]):
        """`stored` are the parameters that `source` reads."""
        self._source, self._stored = source, stored

    def dtype(self, target: Target) -> np.dtype:
        """The dtype in which a parameter is stored; that of another one if the parameter is new."""
        return self._source.dtype(self._stored.get(target.path, next(iter(self._stored.values()))))

    def read(self, target: Target, index: tuple[slice, ...]) -> Shaped[np.ndarray, "..."]:
        """The slice of a parameter at `index`."""
        stored = self._stored.get(target.path)
        if stored is not None and stored.shape == target.shape:
            return self._source.read(stored, index)
        whole = np.full(target.shape, INITIAL[target.path], self.dtype(target))
        if stored is not None:
            inside = tuple(map(slice, stored.shape))
            whole[inside] = self._source.read(stored, inside)
        return whole[index]
