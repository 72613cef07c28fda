"""Random LoRAs of a transformer, and files of them in all layouts."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from qil_jax.weights import LoRA, LowRank
from qil_jax.weights.lora_header import linear_maps

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
MLPS = ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2", "img_mod.1", "txt_mod.1")
TOP = ("img_in", "txt_in", "proj_out", "norm_out.linear")
TIMESTEP = tuple(f"time_text_embed.timestep_embedder.linear_{i}" for i in (1, 2))
"""Names of all linear maps: of a block's attention, of a block, and of the whole transformer."""

SPELLINGS = {
    "lightning": ("{dotted}", ".lora_down.weight", ".lora_up.weight"),
    "kohya": ("lora_unet_{flat}", ".lora_down.weight", ".lora_up.weight"),
    "comfyui": ("diffusion_model.{dotted}", ".lora_A.weight", ".lora_B.weight"),
    "peft": ("{dotted}", ".lora_A.default.weight", ".lora_B.default.weight"),
    "diffusers": ("transformer.{dotted}", ".lora_A.weight", ".lora_B.weight"),
    "bare": ("{dotted}", ".lora_A.weight", ".lora_B.weight"),
}
"""Layout to the names of its tensors; diffusers' own may lack the prefix."""
VARIANTS = {
    "peft alone": ("base_model.model.{dotted}", ".lora_A.weight", ".lora_B.weight"),
    "peft by name": ("base_model.model.{dotted}", ".lora_A.default.weight", ".lora_B.default.weight"),
    "onetrainer": ("lora_transformer_{flat}", ".lora_down.weight", ".lora_up.weight"),
    "old diffusers": ("transformer.{dotted}", ".lora.down.weight", ".lora.up.weight"),
    "older diffusers": ("unet.{dotted}", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    "comfyui's whole model": ("model.diffusion_model.{dotted}", ".lora_A.weight", ".lora_B.weight"),
    "diffsynth": ("pipe.dit.{dotted}", ".lora_A.default.weight", ".lora_B.default.weight"),
}
"""Other names for the same numbers, not all of which diffusers reads."""


def block_modules(block: int) -> list[str]:
    inside = [f"attn.{name}" for name in ATTENTION] + list(MLPS)
    return [f"transformer_blocks.{block}.{name}" for name in inside]


def random_lora(table, modules, *, ranks=(4,), scale: float = 1.0, seed: int = 0, strength: float = 0.3) -> LoRA:
    """A LoRA whose changes are of the size of the kernels; ranks alternate from module to module."""
    random = np.random.default_rng(seed)
    maps, changes = linear_maps(table), {}
    for i, module in enumerate(modules):
        (wide, high), rank = maps[module], ranks[i % len(ranks)]
        a = random.standard_normal((wide, rank)).astype(np.float32) / np.float32(np.sqrt(wide))
        b = random.standard_normal((rank, high)).astype(np.float32) * np.float32(strength / np.sqrt(rank) / scale)
        changes[module] = LowRank(a=a, b=b, scale=scale)
    return LoRA(changes=changes, origin={})


def tensors_of(lora: LoRA, layout: str, *, alphas: bool) -> dict[str, Any]:
    """The tensors of a file of one layout; alphas as numbers beside the factors."""
    name, down, up = (SPELLINGS | VARIANTS)[layout]
    tensors = {}
    for module, change in lora.changes.items():
        stem = name.format(dotted=module, flat=module.replace(".", "_"))
        tensors[stem + down] = np.ascontiguousarray(change.a.T)
        tensors[stem + up] = np.ascontiguousarray(change.b.T)
        if alphas:
            tensors[f"{stem}.alpha"] = np.array(change.scale * change.a.shape[1], np.float32)
    return tensors


def write_layout(file: Path, lora: LoRA, layout: str, *, alphas: bool = True, metadata=None) -> Path:
    save_file(tensors_of(lora, layout, alphas=alphas), file, metadata=metadata)
    return file


def in_bf16(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}
