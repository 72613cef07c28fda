"""Qwen-Image-Layered in JAX/Flax: decomposition of a picture into N editable RGBA layers."""

import importlib
from typing import Any

_HOMES = {
    "LayeredImage": "layers.layered_image",
    "Pipeline": "inference.pipeline",
    "Request": "inference.request",
    "Settings": "inference.request",
}
"""Module of each public name; it is imported on first access of the name."""
__all__ = ["LayeredImage", "Pipeline", "Request", "Settings"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
