"""LPIPS v0.1: a learned distance between RGB pictures (arXiv 1801.03924), on features of AlexNet or VGG16.

Features after five ReLUs are normalised to length 1 at each pixel; their squared differences are weighted per channel
by a learned head, averaged over pixels and summed over the five layers.
"""

from collections.abc import Mapping
from enum import StrEnum

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and standard deviation by which each colour channel of pictures in [-1, 1] is normalised."""
TINY = 1e-10
"""Constant added to the norm of a feature vector."""
TAPS = 5
"""Number of layers whose features are compared."""


class LPIPSNetwork(StrEnum):
    """The network whose features are compared: AlexNet for evaluation, VGG16 for training."""

    ALEXNET = "alexnet"
    VGG16 = "vgg16"


Weights = Mapping[str, Array]
"""The arrays conv_I/kernel [y, x, in, out], conv_I/bias [out] and head_J [channels] by name."""

_ALEXNET = ((11, 4, 2, 64), None, (5, 1, 2, 192), None, (3, 1, 1, 384), (3, 1, 1, 256), (3, 1, 1, 256))
"""Kernel side, stride, padding and channels of each convolution; None stands for 3x3 max pooling with stride 2."""
_VGG16 = (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512)
_VGG_TAPS = (1, 3, 6, 9, 12)


def weight_shapes(network: LPIPSNetwork) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights."""
    layers = [layer for layer in (_ALEXNET if network is LPIPSNetwork.ALEXNET else _VGG16) if layer is not None]
    sizes = [(3, 1, 1, layer) if isinstance(layer, int) else layer for layer in layers]
    shapes: dict[str, tuple[int, ...]] = {}
    before = 3
    for i, (side, _, _, channels) in enumerate(sizes):
        shapes[f"conv_{i}/kernel"], shapes[f"conv_{i}/bias"] = (side, side, before, channels), (channels,)
        before = channels
    taps = range(TAPS) if network is LPIPSNetwork.ALEXNET else _VGG_TAPS
    return shapes | {f"head_{j}": (sizes[tap][3],) for j, tap in enumerate(taps)}


def lpips(
    weights: Weights, network: LPIPSNetwork, first: Float[Array, "b y x 3"], second: Float[Array, "b y x 3"]
) -> Float[Array, " b"]:
    """The distance of each pair of pictures in [-1, 1]; at least 32 pixels a side."""
    total = jnp.zeros(first.shape[0], first.dtype)
    for j, feature in enumerate(_features(weights, network, jnp.concatenate([first, second]))):
        length = jnp.sqrt(jnp.sum(jnp.square(feature), axis=-1, keepdims=True) + TINY**2)
        a, b = jnp.split(feature / (length + TINY), 2)
        total += jnp.mean(jnp.square(a - b) @ weights[f"head_{j}"], axis=(1, 2))
    return total


def pooled_features(weights: Weights, network: LPIPSNetwork, pictures: Float[Array, "b y x 3"]) -> Float[Array, "b d"]:
    """Mean over pixels of the last features of pictures in [-1, 1]; d is 256 for AlexNet, 512 for VGG16."""
    return jnp.mean(_features(weights, network, pictures)[-1], axis=(1, 2))


def _features(weights: Weights, network: LPIPSNetwork, pictures: Float[Array, "b y x 3"]) -> list[Array]:
    scaled = (pictures - jnp.asarray(SHIFT, pictures.dtype)) / jnp.asarray(SCALE, pictures.dtype)
    return _alexnet(weights, scaled) if network is LPIPSNetwork.ALEXNET else _vgg16(weights, scaled)


def _alexnet(weights: Weights, x: Array) -> list[Array]:
    taps, i = [], 0
    for layer in _ALEXNET:
        if layer is None:
            x = _max_pool(x, 3)
            continue
        x = _convolved(weights, i, x, stride=layer[1], padding=layer[2])
        taps.append(x)
        i += 1
    return taps


def _vgg16(weights: Weights, x: Array) -> list[Array]:
    taps, i = [], 0
    for layer in _VGG16:
        if layer is None:
            x = _max_pool(x, 2)
            continue
        x = _convolved(weights, i, x, stride=1, padding=1)
        if i in _VGG_TAPS:
            taps.append(x)
        i += 1
    return taps


def _convolved(weights: Weights, i: int, x: Array, *, stride: int, padding: int) -> Array:
    out = jax.lax.conv_general_dilated(
        x,
        weights[f"conv_{i}/kernel"],
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jax.nn.relu(out + weights[f"conv_{i}/bias"])


def _max_pool(x: Array, side: int) -> Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, side, side, 1), (1, 2, 2, 1), "VALID")
