"""Tiny checkpoints and their quantised forms, and torch's own arithmetic on them."""

from pathlib import Path

import torch
from safetensors.torch import load_file

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"
ELEMENTS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


def dequantised_by_torch(file: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All tensors of a quantised file in full precision."""
    stored = load_file(file)
    scales = {name.removesuffix("_scale"): stored.pop(name) for name in list(stored) if name.endswith(".weight_scale")}
    product = lambda name: (stored[name].float() * scales[name][:, None]).to(dtype)
    return {name: product(name) if name in scales else tensor for name, tensor in stored.items()}
