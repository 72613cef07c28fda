"""LPIPS weights from the safetensors file that `tools/convert_lpips.py` writes."""

from pathlib import Path

import jax
import jax.numpy as jnp
from safetensors import safe_open

from qil_jax.models.lpips import Backbone, Weights, weight_shapes
from qil_jax.weights.safetensors_io import WeightsError


def load_lpips(file: Path) -> tuple[Weights, Backbone]:
    """The weights and whose they are.

    Raises:
      WeightsError: if the file is not one of LPIPS.
    """
    try:
        with safe_open(str(file), "np") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # safetensors raises its own, and OSError
        raise WeightsError([f"{file}: cannot be read ({error}); write it again with tools/convert_lpips.py"]) from error
    found = {name: tuple(x.shape) for name, x in tensors.items()}
    for backbone in Backbone:
        if found == weight_shapes(backbone):
            return jax.tree.map(jnp.asarray, tensors), backbone
    raise WeightsError([f"{file}: is no LPIPS of {' or '.join(Backbone)}; write it with tools/convert_lpips.py"])
