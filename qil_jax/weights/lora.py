"""LoRA files: low-rank changes of the transformer's linear maps, read in many layouts and written as diffusers does.

Only safetensors are read, one module's factors at a time.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped

from qil_jax.files import whole_file
from qil_jax.weights.adapter_config import CONFIG_KEY, PREFIX, AdapterConfig
from qil_jax.weights.lora_header import FLOATS, ORIGIN_KEY, LoRAError, LoRAHeader, StoredLowRank, read_lora_header
from qil_jax.weights.safetensors_io import ShardedWriter, TensorPlan, TensorReader
from qil_jax.weights.strict import DTYPES
from qil_jax.weights.tables.entries import Entry

SUFFIX = ".safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """The change of one kernel [in, out], which is scale * a @ b.

    Attributes:
      a: the first factor, in fp32.
      b: the second factor, in fp32.
      scale: alpha over rank.
    """

    a: Float32[np.ndarray, "i r"]
    b: Float32[np.ndarray, "r o"]
    scale: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoRA:
    """Low-rank changes of a transformer.

    Attributes:
      changes: change of each kernel, by the released name of its linear map, such as transformer_blocks.0.attn.to_q.
        Those of a file are read anew on every access.
      origin: stage and step that made the LoRA, as in training.json; empty if unknown.
      advice: what a LoRA that is known needs, of which its file says nothing.
    """

    changes: Mapping[str, LowRank]
    origin: Mapping[str, Any]
    advice: tuple[str, ...] = ()


class _StoredChanges(Mapping[str, LowRank]):
    """The changes of a file; none of them stays in memory."""

    def __init__(self, header: LoRAHeader):
        self._modules: Mapping[str, StoredLowRank] = header.modules
        self._reader = TensorReader(header.tensors)

    def __getitem__(self, module: str) -> LowRank:
        stored = self._modules[module]
        a, b = (self._reader[name].astype(np.float32).T for name in (stored.down, stored.up))
        self._reader.release()
        return LowRank(a=a, b=b, scale=stored.scale)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


def read_lora(file: Path, table: list[Entry]) -> LoRA:
    """Read a LoRA of the transformer.

    The scale is alpha over rank, from the tensors named alpha, from the configuration that diffusers writes into the
    header, or from the one that PEFT writes beside the file; it is 1 where none is stated.

    Args:
      file: safetensors file of any layout of `LoRALayout`, stored as bf16, fp16 or fp32.
      table: the transformer's tensor table.

    Raises:
      LoRAError: if the file is damaged, holds NaN or infinite values, or anything but LoRAs of the table's linear maps.
        All keys that do not fit are counted, and the first of them named.
    """
    header = read_lora_header(file, table)
    changes = _StoredChanges(header)
    with np.errstate(invalid="ignore", over="ignore"):
        broken = [m for m, c in changes.items() if not (np.isfinite(c.a).all() and np.isfinite(c.b).all())]
    if broken:
        named = ", ".join(broken[:4]) + (f" and {len(broken) - 4} more" if len(broken) > 4 else "")
        raise LoRAError([f"{file}: NaN or infinite values for {named}; train it again, or give another"])
    return LoRA(changes=changes, origin=header.origin, advice=header.advice)


def write_lora(file: Path, lora: LoRA, dtype: str = "float32") -> None:
    """Write a LoRA in diffusers' layout, which `load_lora_weights` of its pipelines and `read_lora` read.

    The file appears complete or not at all. Factors are rounded to `dtype`; rank and scale are kept exactly.

    Args:
      file: path of the new file, which ends in .safetensors.
      lora: the changes, of any ranks.
      dtype: dtype of the stored factors: float32, bfloat16 or float16.

    Raises:
      LoRAError: if the file exists or is not named .safetensors, the LoRA is empty, or its factors do not fit together.
    """
    if os.path.lexists(file):
        raise LoRAError([f"{file} exists: give another file, or remove it"])
    problems = [] if file.suffix == SUFFIX else [f"{file}: must end in {SUFFIX}; only safetensors are written"]
    problems += [] if lora.changes else [f"{file}: there is nothing to write; give a LoRA of at least one module"]
    problems += [] if dtype in FLOATS else [f"{file}: dtype must be one of {', '.join(FLOATS)}, got {dtype!r}"]
    if problems:
        raise LoRAError(problems)
    stored = {value.name: value for value in DTYPES.values()}[dtype]
    plans, ranks, alphas = [], {}, {}
    for module, change in lora.changes.items():
        (wide, rank), (other, high) = change.a.shape, change.b.shape
        if rank != other or not (math.isfinite(change.scale) and change.scale > 0):
            problems.append(
                f"{file}: {module} has factors of ranks {rank} and {other} and scale {change.scale}; the ranks must "
                "agree and the scale be positive"
            )
            continue
        ranks[module], alphas[module] = rank, _alpha(change.scale, rank)
        down, up = _names(module)
        plans.append(TensorPlan(name=down, dtype=stored, shape=(rank, wide)))
        plans.append(TensorPlan(name=up, dtype=stored, shape=(high, rank)))
    if problems:
        raise LoRAError(problems)
    metadata = {CONFIG_KEY: AdapterConfig.of(ranks, alphas).text(list(ranks))}
    if lora.origin:
        metadata[ORIGIN_KEY] = json.dumps(dict(lora.origin))
    whole = sum(plan.bytes for plan in plans)
    with whole_file(file) as draft:
        writer = ShardedWriter(draft.parent, draft.stem, plans, shard_bytes=whole, metadata=metadata)
        with closing(writer):
            for module, change in lora.changes.items():
                for name, factor in zip(_names(module), (change.a, change.b), strict=True):
                    writer.write(name, _rounded(factor.T, stored))


def _names(module: str) -> tuple[str, str]:
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _rounded(x: Shaped[np.ndarray, "..."], dtype: np.dtype) -> Shaped[np.ndarray, "..."]:
    return np.ascontiguousarray(x).astype(dtype)


def _alpha(scale: float, rank: int) -> int | float:
    """An alpha that gives exactly this scale when it is divided by the rank, a whole number where possible."""
    near = scale * rank
    candidates = (round(near), near, math.nextafter(near, math.inf), math.nextafter(near, 0))
    return next((alpha for alpha in candidates if alpha / rank == scale), near)
