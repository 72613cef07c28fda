"""Conversion of 8-bit pictures to the RGBA-VAE's range [-1, 1] and back, without importing jax."""

from typing import Any

import numpy as np
from jaxtyping import UInt8


def to_float(pixels: Any) -> Any:
    """8-bit numpy or jax arrays mapped to [-1, 1] in fp32, alpha included, as in diffusers' VaeImageProcessor."""
    return pixels.astype(np.float32) / 127.5 - 1


def to_uint8(pixels: Any) -> UInt8[np.ndarray, "..."]:
    """Numpy or jax arrays in [-1, 1] quantised to 8 bits; values outside are clipped."""
    return np.round((np.asarray(pixels, np.float32) * 0.5 + 0.5).clip(0, 1) * 255).astype(np.uint8)
