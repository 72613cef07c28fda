"""LoRA files in diffusers' layout: pairs of low-rank factors by released module name."""

import dataclasses
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from qil_jax.errors import QilError
from qil_jax.weights.tables.entries import Entry

PREFIX = "transformer."


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """The change scale * a @ b of a kernel [i, o], with a [i, r] and b [r, o] in fp32."""

    a: np.ndarray
    b: np.ndarray
    scale: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoRA:
    """Changes by released module name, and the stage and step that made them."""

    changes: Mapping[str, LowRank]
    origin: Mapping[str, Any]


class LoRAError(QilError):
    """A LoRA file cannot be read or written. The message gives the cause."""


def read_lora(file: Path, table: list[Entry]) -> LoRA:
    """Read a LoRA file of the layout that `write_lora` writes, for the modules of a table."""
    del table
    tensors, changes = load_file(file), {}
    for name, down in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            up = tensors[f"{PREFIX}{module}.lora_B.weight"]
            alpha = float(tensors.get(f"{PREFIX}{module}.alpha", np.float32(down.shape[0])))
            changes[module] = LowRank(a=down.T, b=up.T, scale=alpha / down.shape[0])
    return LoRA(changes=changes, origin={})


def write_lora(file: Path, lora: LoRA, dtype: str = "float32") -> None:
    """Write a LoRA file, which appears whole; refuses an existing file."""
    if os.path.lexists(file):
        raise LoRAError(f"{file} exists: give another file, or remove it")
    tensors = {}
    for module, change in lora.changes.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(change.a.T.astype(dtype))
        tensors[f"{PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(change.b.T.astype(dtype))
        tensors[f"{PREFIX}{module}.alpha"] = np.asarray(change.scale * change.a.shape[1], np.float32)
    unfinished = file.parent / f".{file.name}.{uuid.uuid4().hex}"
    save_file(tensors, unfinished, metadata={"origin": json.dumps(dict(lora.origin))})
    unfinished.replace(file)
