"""Memory that a run needs at least, planned from configs and shapes, so that what cannot fit is refused beforehand."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from qil_jax.encoders.image_encoder import PLAIN_PIXELS
from qil_jax.errors import QilError
from qil_jax.inference.checkpoint import Checkpoint
from qil_jax.inference.images import bucket_size
from qil_jax.inference.request import Settings, known

CGROUP = Path("/sys/fs/cgroup/memory.max")
STREAMS = 6
"""Arrays as wide as the residual stream that a block holds at once: itself, its norm, queries, keys, values, sum."""
MODULATIONS = 12
"""Shift, scale and gate, for attention and feed-forward, of pictures and text."""
MAPS = 2
"""Feature maps at full size that the VAE's last block holds at once."""
RGBA = 4
"""Bytes of a pixel as it is handed back."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes that a batch needs at least, over all devices.

    Attributes:
      parameters: of all components.
      denoise: activations of one transformer block, and the modulation of all steps.
      decode: feature maps of the VAE, and the pictures.
      tokens: image tokens of the batch.
    """

    parameters: int
    denoise: int = 0
    decode: int = 0
    tokens: int = 0

    @property
    def total(self) -> int:
        """Bytes of the parameters and of the larger of the two phases."""
        return self.parameters + max(self.denoise, self.decode)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """What a request needs room for.

    Attributes:
      size: width and height in pixels at which the model sees the picture.
      pictures: number of layers, composites and conditions, of all samples.
    """

    size: tuple[int, int]
    pictures: int

    @classmethod
    def of(cls, size: tuple[int, int], *, resolution: int, layers: int, samples: int = 1) -> "Drawing":
        """The drawing of a request for a picture whose file has `size`, width and height in pixels."""
        return cls(size=bucket_size(*size, resolution), pictures=(layers + 2) * samples)


def plan_memory(drawings: Sequence[Drawing], settings: Settings, checkpoint: Checkpoint) -> MemoryPlan:
    """Bytes of one batch; the settings have the checkpoint's defaults filled in."""
    mmdit, vae, size = checkpoint.transformer, checkpoint.vae, checkpoint.size
    pixels = [math.prod(drawing.size) for drawing in drawings]
    drawn = sum(each * drawing.pictures for each, drawing in zip(pixels, drawings, strict=True))
    tokens = drawn // (vae.scale_factor * mmdit.patch_size) ** 2
    passes = 2 if known(settings.guidance) > 1 else 1
    width = mmdit.width
    modulation = known(settings.steps) * mmdit.num_layers * MODULATIONS * width
    coded = min(max(pixels, default=0), PLAIN_PIXELS)
    return MemoryPlan(
        parameters=size.parameters,
        denoise=(passes * tokens * width * STREAMS + modulation) * size.itemsize,
        decode=coded * vae.base_dim * MAPS * size.itemsize + drawn * RGBA,
        tokens=tokens,
    )


def require_memory(plan: MemoryPlan, mesh: Mesh) -> None:
    """Refuse a batch that cannot fit.

    Raises:
      QilError: with the figures.
    """
    there = available_bytes(mesh)
    if there is not None and plan.total > there:
        raise QilError(
            f"needs at least {_gigabytes(plan.total)} of memory: {_gigabytes(plan.parameters)} for the parameters, "
            f"{_gigabytes(plan.denoise)} to denoise {plan.tokens:,} tokens, {_gigabytes(plan.decode)} to decode; "
            f"{mesh.size} device{'s' if mesh.size > 1 else ''} ({mesh.devices.flat[0].platform}) have "
            f"{_gigabytes(there)}: ask for a lower resolution, fewer layers, steps or pictures at once, or give "
            f"a larger mesh"
        )


def available_bytes(mesh: Mesh) -> int | None:
    """Memory of all devices of a mesh together; None if they do not say. Devices of a CPU share the host's."""
    devices = list(mesh.devices.flat)
    if devices[0].platform == "cpu":
        return host_bytes() * jax.process_count()
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in mesh.local_devices]
    return min(limits) * len(devices) if limits and min(limits) else None


def host_bytes() -> int:
    """Memory of this host, or of the container that the program runs in."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else "max"
    return min(total, int(limit)) if limit.isdecimal() else total


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
