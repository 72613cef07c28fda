"""8-bit pictures to the numbers that the RGBA-VAE reads, and back. Imports no jax."""

from typing import Any

import numpy as np
from jaxtyping import UInt8


def to_float(pixels: Any) -> Any:
    """8 bits to [-1, 1] in fp32, alpha as any channel, as diffusers' VaeImageProcessor does. Of numpy and of jax."""
    return pixels.astype(np.float32) / 127.5 - 1


def to_uint8(pixels: Any) -> UInt8[np.ndarray, "..."]:
    """Values in [-1, 1], of numpy or jax, as 8 bits; what lies beyond is clipped."""
    return np.round((np.asarray(pixels, np.float32) * 0.5 + 0.5).clip(0, 1) * 255).astype(np.uint8)
