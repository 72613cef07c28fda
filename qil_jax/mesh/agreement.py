"""What several processes know, brought together."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped


def gathered(x: Shaped[np.ndarray, "*n"]) -> Shaped[np.ndarray, "p *n"]:
    """The arrays of all processes, of equal shapes, in the order of the processes; all must call this function."""
    if jax.process_count() == 1:
        return np.asarray(x)[None]
    return np.asarray(multihost_utils.process_allgather(x))


def of_first(value: Any) -> Any:
    """Process 0's value, of which JSON is made, in all processes; all must call this function."""
    if jax.process_count() == 1:
        return value
    data = json.dumps(value).encode() if jax.process_index() == 0 else b""
    padded = np.zeros(gathered(np.array([len(data)]))[0, 0], np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return json.loads(gathered(padded)[0].tobytes())
