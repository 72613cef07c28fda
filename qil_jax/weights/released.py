"""The released Qwen-Image-Layered: configs of its components, and hashes of its files' tensor names and shapes."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from qil_jax.weights.tables.entries import Component

CONFIGS: Mapping[Component, Mapping[str, Any]] = {
    Component.TRANSFORMER: {
        "_class_name": "QwenImageTransformer2DModel",
        "attention_head_dim": 128,
        "axes_dims_rope": [16, 56, 56],
        "guidance_embeds": False,
        "in_channels": 64,
        "joint_attention_dim": 3584,
        "num_attention_heads": 24,
        "num_layers": 60,
        "out_channels": 16,
        "patch_size": 2,
        "use_additional_t_cond": True,
        "use_layer3d_rope": True,
        "zero_cond_t": False,
    },
    Component.VAE: {
        "_class_name": "AutoencoderKLQwenImage",
        "attn_scales": [],
        "base_dim": 96,
        "dim_mult": [1, 2, 4, 4],
        "dropout": 0.0,
        "input_channels": 4,
        "latents_mean": [
            *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
            *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
        ],
        "latents_std": [
            *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
            *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
        ],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
        "z_dim": 16,
    },
    Component.TEXT_ENCODER: {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_window_layers": 28,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"mrope_section": [16, 24, 24], "type": "mrope"},
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "hidden_act": "silu",
            "hidden_size": 1280,
            "in_chans": 3,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
        },
        "vocab_size": 152064,
    },
}
"""Parsed config.json of each component (docs/specification.md, 7)."""

STRUCTURE_HASHES: Mapping[str, str] = {
    "8dc8cda05de16c73afa755e2c1ce2839": "Qwen-Image-Layered transformer",
    "44b39ddc499e027cfb24f7878d7416b9": "Qwen-Image-Layered RGBA-VAE",
    "8004730443f55db63092006dd9f7110e": "Qwen2.5-VL-7B text encoder",
    "0319a1cb19835fb510907dd3367c95ff": "Qwen-Image transformer",
    "ed4ea5824d55ec3107b09815e318123a": "Qwen-Image RGB VAE",
}
"""Hashes of the tensor names and shapes in released files, as published by DiffSynth-Studio."""


def structure_hash(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """The MD5 hash of the sorted names, each once alone and once with its shape, as in `name:3072_256`."""
    words = [word for name, shape in tensors for word in (name, f"{name}:{'_'.join(map(str, shape))}")]
    return hashlib.md5(",".join(sorted(words)).encode(), usedforsecurity=False).hexdigest()
