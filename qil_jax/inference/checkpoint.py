"""A checkpoint that decomposes pictures: its defaults and LoRAs, and the memory of its parameters."""

import collections
import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from qil_jax.choices import Precision
from qil_jax.errors import QilError, shown
from qil_jax.inference.defaults import Defaults
from qil_jax.models.config import ConfigError
from qil_jax.models.paths import slashed
from qil_jax.shipped import shipped_checkpoint
from qil_jax.weights import Checkpoint, Component, LoRA, LoRAError, read_lora
from qil_jax.weights.tables.entries import Entry

ENTRANCE = "backbone/image_in/kernel"
"""The parameter whose dtype the transformer computes in; it is never quantised."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredSize:
    """Memory of a checkpoint's parameters after loading, in bytes.

    Attributes:
      text_encoder: bytes of the text encoder's parameters.
      modulation: bytes of the parameters of the transformer's modulation network.
      backbone: bytes of the transformer's other parameters.
      vision: bytes of the vision tower's and the output head's parameters, which only captions need.
      vae: bytes of the RGBA-VAE's parameters.
      itemsize: bytes of one element of the transformer's activations.
    """

    text_encoder: int = 0
    vision: int = 0
    modulation: int = 0
    backbone: int = 0
    vae: int = 0
    itemsize: int

    @property
    def parameters(self) -> int:
        """Bytes of all parameters but those that only captions need."""
        return self.text_encoder + self.modulation + self.backbone + self.vae


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AppliedLoRA:
    """A LoRA file that changes the transformer of a checkpoint.

    Attributes:
      file: path of the file as given by the user.
      sha256: SHA-256 of the file's bytes.
      scale: factor of its changes.
      lora: its changes.
    """

    file: Path
    sha256: str
    scale: float
    lora: LoRA

    @property
    def made_from(self) -> dict[str, Any]:
        """The file's name, its SHA-256 and the scale, which a result records."""
        return {"file": self.file.name, "sha256": self.sha256, "scale": self.scale}


class LayeredCheckpoint(Checkpoint):
    """A sound checkpoint that decomposes pictures, and how it is loaded to do so.

    Attributes:
      dtype: dtype of parameters and activations; None: the stored dtype.
    """

    def __init__(self, folder: Path | str, *, dtype: str | None = None, loras: Sequence[tuple[Path | str, float]] = ()):
        """Take the arguments of `open`, which checks them and the folder."""
        super().__init__(folder)
        self.dtype, self._given = dtype, loras

    @classmethod
    def open(
        cls,
        folder: Path | str | None = None,
        *,
        dtype: str | None = None,
        loras: Sequence[tuple[Path | str, float]] = (),
    ) -> "LayeredCheckpoint":
        """Check a folder of the released layout (diffusers) or of ours (orbax).

        Args:
          folder: folder that holds model_index.json; None: the demonstration model that the package ships.
          dtype: dtype of parameters and activations, float32 or bfloat16; None: the stored dtype.
          loras: LoRA files of the transformer, each with the scale of its changes; 1 applies it as it was trained.

        Raises:
          StructureError: if the checkpoint is not sound; the message lists every problem.
          LoRAError: if LoRA files cannot be read or do not fit the transformer; the message lists every problem.
          ConfigError: if the checkpoint's model does not decompose pictures.
          QilError: if an argument is of another type, or `dtype` or qil.json cannot be used.
        """
        if dtype not in (None, *Precision):
            raise QilError(f"dtype must be one of {', '.join(Precision)}, or None for what is stored; got {dtype!r}")
        if not isinstance(folder, str | os.PathLike | None):
            raise QilError(
                f"the checkpoint must be the path of a folder, or None for the shipped one; got {shown(folder)}"
            )
        opened = cls(shipped_checkpoint() if folder is None else folder, dtype=dtype, loras=loras)
        opened.require_sound()
        require_layered(opened)
        _ = opened.defaults, opened.loras  # what is wrong with them is said here
        return opened

    @functools.cached_property
    def defaults(self) -> Defaults:
        """Default options from qil.json."""
        return Defaults.of(self.folder)

    @functools.cached_property
    def loras(self) -> tuple[AppliedLoRA, ...]:
        """The LoRAs that are added to the transformer when it is loaded."""
        return _read_loras(self[Component.TRANSFORMER].table, self._given)

    @property
    def advice(self) -> list[str]:
        """What its LoRAs need beside their files, as far as they are known."""
        return [line for applied in self.loras for line in applied.lora.advice]

    @functools.cached_property
    def size(self) -> StoredSize:
        """Memory of the parameters in `dtype`."""
        return _stored_size(self)


def require_layered(checkpoint: Checkpoint) -> None:
    """Refuse a sound checkpoint that decomposes nothing, such as one of Qwen-Image.

    Raises:
      ConfigError: if it does not decompose pictures.
    """
    transformer, vae = checkpoint.transformer, checkpoint.vae
    if not (transformer.use_layer3d_rope and transformer.use_additional_t_cond):
        raise ConfigError(
            "transformer/config.json: use_layer3d_rope and use_additional_t_cond must be true to decompose pictures; "
            "this is Qwen-Image's text-to-image transformer. Point --checkpoint at Qwen-Image-Layered"
        )
    if vae.input_channels != 4:
        raise ConfigError(f"vae/config.json: input_channels must be 4 (RGBA), got {vae.input_channels}")
    if transformer.in_channels != vae.z_dim * transformer.patch_size**2:
        raise ConfigError(
            f"transformer/config.json: in_channels {transformer.in_channels} does not hold {vae.z_dim} latent channels "
            f"of {transformer.patch_size}x{transformer.patch_size} patches: the transformer and the VAE do not belong "
            "together"
        )


def _is_scaled(given: object) -> bool:
    """Whether this is a pair of a path and a number."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        return False
    return isinstance(given[0], str | os.PathLike) and isinstance(given[1], int | float)


def _read_loras(table: list[Entry], given: Sequence[tuple[Path | str, float]]) -> tuple[AppliedLoRA, ...]:
    found, problems = [], []
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(map(_is_scaled, given)):
        raise LoRAError(
            [f"loras must be pairs of a file and a scale, such as [('a.safetensors', 1.0)]; got {shown(given)}"]
        )
    for name, scale in given:
        file = Path(name)
        if not math.isfinite(scale):
            problems.append(f"{file}: the scale must be a finite number, got {scale}")
        try:
            lora = read_lora(file, table)
            with file.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        except (LoRAError, OSError) as error:
            problems += error.problems if isinstance(error, LoRAError) else [f"{file}: {error.strerror or error}"]
            continue
        found.append(AppliedLoRA(file=file, sha256=sha256, scale=float(scale), lora=lora))
    if problems:
        raise LoRAError(problems)
    return tuple(found)


def _stored_size(checkpoint: LayeredCheckpoint) -> StoredSize:
    sizes, itemsize = collections.Counter[str](), 0
    for component in Component:
        source, wanted = checkpoint[component].source(), checkpoint[component].targets
        state = nnx.to_flat_state(nnx.state(checkpoint.abstract(component), nnx.Param))
        parts = dict.fromkeys((slashed(path) for path, _ in state), component.value)
        if component is Component.TRANSFORMER:
            parts = {path: path.partition("/")[0] for path in parts}
        elif component is Component.TEXT_ENCODER:
            parts = {**dict.fromkeys(wanted, "vision"), **parts}
        for path, part in parts.items():
            kind = wanted[path].loaded_dtype(source.dtype(wanted[path]), checkpoint.dtype)
            sizes[part] += math.prod(wanted[path].shape) * kind.itemsize
            itemsize = kind.itemsize if path == ENTRANCE else itemsize
    return StoredSize(**sizes, itemsize=itemsize)
