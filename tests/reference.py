"""Reference modules brought into ours through the shipping converter, and the error measure of all parity tests."""

import copy
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from flax import nnx

from qil_jax.mesh import INFERENCE_RULES, single_device_mesh
from qil_jax.models.qwen2_5_vl import Qwen2_5VLConfig, TextEncoder
from qil_jax.models.rgba_vae import RGBAVAE, VAEConfig
from qil_jax.models.vld_mmdit import MMDiTConfig, VLDMMDiT
from qil_jax.weights import component_config, load_model

Module = TypeVar("Module", bound=torch.nn.Module)
MODELS = {
    "vae": (RGBAVAE, VAEConfig),
    "transformer": (VLDMMDiT, MMDiTConfig),
    "text_encoder": (TextEncoder, Qwen2_5VLConfig),
}


def abstract(component: str, config: dict) -> nnx.Module:
    model, config_class = MODELS[component]
    return nnx.eval_shape(lambda: model(config_class.from_json(config), rngs=nnx.Rngs(0)))


def ours(reference, component: str, folder: Path) -> nnx.Module:
    """Our model with the weights of a reference module, by way of the files that it saves."""
    reference.save_pretrained(folder / component)
    model = abstract(component, component_config(folder, component))
    return load_model(folder / component, model, mesh=single_device_mesh(), rules=INFERENCE_RULES)


def error(actual, expected) -> float:
    """Largest absolute difference over the largest absolute value of the reference."""
    actual, expected = np.asarray(actual), np.asarray(expected.detach() if torch.is_tensor(expected) else expected)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert np.isfinite(actual).all()
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def mean_error(actual, expected) -> float:
    """Mean absolute difference, in fp32."""
    actual, expected = (np.asarray(x, np.float32) for x in (actual, expected))
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert np.isfinite(actual).all()
    return float(np.abs(actual - expected).mean())


def in_bf16(reference: Module) -> tuple[Module, Module]:
    """A reference module rounded to bf16, and one of the same rounded weights that computes in fp32."""
    rounded = reference.to(torch.bfloat16)
    return rounded, copy.deepcopy(rounded).to(torch.float32)
