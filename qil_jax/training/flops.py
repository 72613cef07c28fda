"""FLOPs of training steps, and peak throughput of the devices."""

import math
from typing import Any

import jax
from flax import nnx

from qil_jax.models.rgba_vae import RGBAVAE
from qil_jax.models.vld_mmdit import MMDiTConfig
from qil_jax.training.batches import FlowBatch

PEAKS = {"TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5": 459e12, "TPU v6 lite": 918e12, "NVIDIA H100": 989e12}
"""Peak bf16 FLOP/s of a device by prefix of its kind; the longest matching prefix is used."""


def peak_flops() -> float | None:
    """Total peak FLOP/s of all devices; None if it is unknown."""
    kind = jax.devices()[0].device_kind
    found = [name for name in PEAKS if kind.startswith(name)]
    return PEAKS[max(found, key=len)] * jax.device_count() if found else None


def flow_flops(config: MMDiTConfig, batch: FlowBatch, *, frozen: bool = False) -> float:
    """FLOPs of a training step of the transformer, estimated from the matrix products of a forward pass.

    A step does three times these products. If the kernels are frozen, the products that give their gradients are left
    out; those of low-rank changes are neglected.
    """
    rows, image = batch.clean.shape[:2]
    text, d = batch.text.shape[1], config.width
    kernels = config.num_layers * (2 * 12 * d**2 * (image + text) + 2 * 12 * d**2)
    kernels += 2 * d * (2 * config.in_channels * image + config.joint_attention_dim * text)
    attention = config.num_layers * 4 * (image + text) ** 2 * d
    return rows * ((2.0 if frozen else 3.0) * kernels + 3.0 * attention)


def vae_flops_per_pixel(vae: RGBAVAE) -> float:
    """FLOPs of a training step per pixel, estimated as three times the convolutions of a forward pass."""
    total = 0.0
    for name, module in nnx.iter_modules(vae):
        if isinstance(module, nnx.Conv | nnx.Linear):
            total += 2 * math.prod(module.kernel.shape) / 4 ** _halvings(name, vae)
    return 3.0 * total


def _halvings(path: tuple[Any, ...], vae: RGBAVAE) -> int:
    """The base-2 logarithm of the downsampling factor at a layer of the VAE."""
    levels = len(vae.config.dim_mult) - 1
    if path[0] == "decoder" and path[1] == "up":
        return levels - int(path[2])
    if path[0] == "encoder" and path[1] == "down":
        return min(levels, int(path[2]) // (vae.config.num_res_blocks + 1))
    return 0 if path[:2] in (("encoder", "conv_in"), ("decoder", "conv_out")) else levels
