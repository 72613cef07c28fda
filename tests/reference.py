"""Reference modules brought into ours through the shipping converter, and the error measure of all parity tests."""

import copy
from pathlib import Path
from typing import TypeVar

import numpy as np
from flax import nnx

from qil_jax.mesh import INFERENCE_RULES, Sharding, single_device_mesh
from qil_jax.models.qwen2_5_vl import VisionLanguage
from qil_jax.weights import Checkpoint, Component, TextEncoderPart

Module = TypeVar("Module")
"""A module of torch, which tests without the extra parity lack: this file does without it."""


def ours(reference, component: str, folder: Path) -> nnx.Module:
    """Our model with the weights of a reference module, by way of the files that it saves."""
    reference.save_pretrained(folder / component)
    return Checkpoint(folder).load(Component(component), Sharding(single_device_mesh(), INFERENCE_RULES))


def our_vision_language(reference, folder: Path) -> VisionLanguage:
    """Our whole vision-language model with the weights of a reference one."""
    reference.save_pretrained(folder / Component.TEXT_ENCODER)
    sharding = Sharding(single_device_mesh(), INFERENCE_RULES)
    return Checkpoint(folder).load(TextEncoderPart.VISION_LANGUAGE, sharding)


def error(actual, expected) -> float:
    """Largest absolute difference over the largest absolute value of the reference."""
    actual, expected = np.asarray(actual), np.asarray(getattr(expected, "detach", lambda: expected)())
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert np.isfinite(actual).all()
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def mean_error(actual, expected) -> float:
    """Mean absolute difference, in fp32."""
    actual, expected = (np.asarray(x, np.float32) for x in (actual, expected))
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert np.isfinite(actual).all()
    return float(np.abs(actual - expected).mean())


def relative(actual, expected) -> float:
    """The root mean square of the difference over that of the reference."""
    actual, expected = np.asarray(actual, np.float64), expected.double().numpy()
    assert actual.shape == expected.shape and np.isfinite(actual).all()
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def in_bf16(reference: Module) -> tuple[Module, Module]:
    """A reference module rounded to bf16, and one of the same rounded weights that computes in fp32."""
    rounded = reference.bfloat16()
    return rounded, copy.deepcopy(rounded).float()
