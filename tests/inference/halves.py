"""A stand-in for the pipeline, and pictures for it."""

from collections.abc import Sequence

import numpy as np

from qil_jax.inference.defaults import Defaults
from qil_jax.inference.images import preprocess
from qil_jax.inference.request import Decomposition, Request, Settings
from qil_jax.layers.layered_image import LayeredImage

SIDE = 64


class Halves:
    """A decomposer: the left half, the right half, an empty layer; values up to 6 levels off. Counts its batches."""

    def __init__(self) -> None:
        self.batches: list[list[Request]] = []

    def decompose(self, requests: Sequence[Request], settings: Settings = Settings()) -> list[Decomposition]:
        self.batches.append(list(requests))
        return [self._halves(request) for request in requests]

    def _halves(self, request: Request) -> Decomposition:
        pixels, _ = preprocess(request.image, SIDE)
        middle = pixels.shape[1] // 2
        layers = np.zeros((3, *pixels.shape), np.uint8)
        layers[0, :, :middle], layers[1, :, middle:] = pixels[:, :middle], pixels[:, middle:]
        noise = np.random.default_rng(request.seed).integers(-6, 7, layers.shape)
        layers = np.where(layers[..., 3:] > 0, layers + noise, 0).clip(0, 255).astype(np.uint8)
        return Decomposition(
            layered=LayeredImage(layers=layers, names=("left", "right", "nothing"), caption=request.prompt or ""),
            composite=pixels,
            input=pixels,
            latents=np.zeros((1, 1, 1, 1), np.float32),
            timings={},
            request=request.filled(Defaults()),
            sample=0,
        )
