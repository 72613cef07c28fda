"""LPIPS weights from the safetensors file that `qil convert-lpips` writes."""

from pathlib import Path

import jax.numpy as jnp

from qil_jax.models.lpips import LPIPSNetwork, Weights, weight_shapes
from qil_jax.programs import called
from qil_jax.weights.safetensors_io import TensorReader, read_headers
from qil_jax.weights.strict import WeightsError


def load_lpips(file: Path) -> tuple[Weights, LPIPSNetwork]:
    """The weights and the network to which they belong.

    Raises:
      WeightsError: if the file does not hold LPIPS weights.
    """
    try:
        stored = TensorReader(read_headers([file]))
    except WeightsError as error:
        raise WeightsError([*error.problems, f"write the file again with {called('convert-lpips')}"]) from error
    found = {name: info.shape for name, info in stored.tensors.items()}
    for backbone in LPIPSNetwork:
        if found == weight_shapes(backbone):
            return {name: jnp.array(stored[name]) for name in found}, backbone
    raise WeightsError([f"{file}: is no LPIPS of {' or '.join(LPIPSNetwork)}; write it with {called('convert-lpips')}"])
