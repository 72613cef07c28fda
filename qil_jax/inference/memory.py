"""Lower bound of a run's memory, computed from configs and shapes, so that oversized batches are refused early."""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from qil_jax.choices import Passes, Residency
from qil_jax.encoders.image_encoder import PLAIN_PIXELS
from qil_jax.errors import QilError
from qil_jax.host_memory import gigabytes, host_bytes
from qil_jax.inference.checkpoint import LayeredCheckpoint
from qil_jax.inference.images import bucket_size
from qil_jax.inference.request import ResolvedSettings

STREAMS = 6
"""Simultaneous arrays of the residual stream's width in a block: input, norm, queries, keys, values and sum."""
MODULATIONS = 12
"""Modulation vectors per block: shift, scale and gate, for attention and MLP, of the image and the text stream."""
MAPS = 2
"""Number of simultaneous full-size feature maps in the VAE's last block."""
RGBA = 4
"""Bytes per pixel of the returned pictures."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Lower bound of a batch's memory in bytes, summed over all devices.

    Attributes:
      parameters: bytes of the parameters that are there while the batch is denoised and decoded.
      before: bytes of the largest of the phases before: captions, prompts, and modulation with its table.
      denoise: bytes of the activations of one transformer block.
      decode: bytes of the VAE's feature maps and of the pictures.
      tokens: number of image tokens of the batch.
    """

    parameters: int
    before: int = 0
    denoise: int = 0
    decode: int = 0
    tokens: int = 0

    @property
    def total(self) -> int:
        """Bytes of the largest of all phases."""
        return max(self.before, self.parameters + max(self.denoise, self.decode))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """Size and number of the pictures that a request processes.

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


def plan_memory(
    drawings: Sequence[Drawing],
    settings: ResolvedSettings,
    checkpoint: LayeredCheckpoint,
    *,
    residency: Residency = Residency.ALL,
    passes: Passes = Passes.BATCH,
    captioned: int = 0,
) -> MemoryPlan:
    """Memory of one batch, of which `captioned` pictures have no prompt."""
    mmdit, vae, size = checkpoint.transformer, checkpoint.vae, checkpoint.size
    pixels = [math.prod(drawing.size) for drawing in drawings]
    drawn = sum(each * drawing.pictures for each, drawing in zip(pixels, drawings, strict=True))
    tokens = drawn // (vae.scale_factor * mmdit.patch_size) ** 2
    rows = 2 if settings.guidance > 1 and passes is Passes.BATCH else 1
    table = settings.steps * mmdit.num_layers * MODULATIONS * mmdit.width * size.itemsize
    coded = min(max(pixels, default=0), PLAIN_PIXELS)
    everything = residency is Residency.ALL
    vision = size.vision if captioned else 0
    return MemoryPlan(
        parameters=size.parameters + vision if everything else size.backbone + size.vae,
        before=(
            size.parameters + vision + table if everything else max(size.text_encoder + vision, size.modulation + table)
        ),
        denoise=rows * tokens * mmdit.width * STREAMS * size.itemsize,
        decode=coded * vae.base_dim * MAPS * size.itemsize + drawn * RGBA,
        tokens=tokens,
    )


def require_memory(plan: MemoryPlan, mesh: Mesh) -> None:
    """Refuse a batch that does not fit into memory.

    Raises:
      QilError: if the batch does not fit; the message gives the required and the available memory.
    """
    there = available_bytes(mesh)
    if there is not None and plan.total > there:
        raise QilError(
            f"needs at least {gigabytes(plan.total)} of memory: {gigabytes(plan.parameters)} for the parameters, "
            f"{gigabytes(plan.denoise)} to denoise {plan.tokens:,} tokens, {gigabytes(plan.decode)} to decode, "
            f"{gigabytes(plan.before)} before that; "
            f"{mesh.size} device{'s' if mesh.size > 1 else ''} ({mesh.devices.flat[0].platform}) have "
            f"{gigabytes(there)}: ask for a lower resolution, fewer layers, steps or pictures at once, or give "
            f"a larger mesh"
        )


def available_bytes(mesh: Mesh) -> int | None:
    """Total memory of a mesh's devices in bytes; None if they do not report it. CPU devices share the host's memory."""
    devices = list(mesh.devices.flat)
    if devices[0].platform == "cpu":
        return host_bytes() * jax.process_count()
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in mesh.local_devices]
    return min(limits) * len(devices) if limits and min(limits) else None
