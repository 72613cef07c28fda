"""Addition of LoRAs to slices of kernels while they are read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from qil_jax.weights.lora import LoRA
from qil_jax.weights.lora_header import LoRAError, linear_maps, require_full_precision
from qil_jax.weights.tables.entries import Component, Entry, Target, Transform

Scaled = tuple[LoRA, float]
"""A LoRA and the factor with which it is added."""


def require_fit(component: Component, table: list[Entry], loras: Sequence[Scaled]) -> None:
    """Check that LoRAs can be added to a component, before any tensor of it is read.

    Raises:
      LoRAError: if the component is not a transformer of full precision, a module is not in the table, or a factor is
        not finite.
    """
    if loras and component is not Component.TRANSFORMER:
        raise LoRAError([f"LoRAs change the transformer only, not the {component}: load it without them"])
    if loras:
        require_full_precision(table)
    known = linear_maps(table)
    problems = []
    for number, (lora, scale) in enumerate(loras, start=1):
        unknown = [module for module in lora.changes if module not in known]
        if unknown:
            problems.append(f"LoRA {number}: {len(unknown)} modules are not in this transformer, such as {unknown[0]}")
        if not np.isfinite(scale):
            problems.append(f"LoRA {number}: its scale must be a finite number, got {scale}")
    if problems:
        raise LoRAError(problems)


def merged(
    stored: Shaped[np.ndarray, "..."], target: Target, index: tuple[slice, ...], loras: Sequence[Scaled], dtype: Any
) -> Shaped[np.ndarray, "..."]:
    """A slice of a parameter with the LoRAs added in fp32 and rounded once; one block is added at a time.

    Args:
      stored: elements of the slice in their stored dtype, which may be overwritten.
      target: parameter of the slice.
      index: position of the slice in the parameter, one slice per dimension.
      loras: LoRAs of the whole model, each with its factor.
      dtype: dtype of the result.

    Raises:
      LoRAError: if a change has another shape than its kernel.
    """
    first = target.entries[0]
    blocks = target.entries if first.block is None else target.entries[index[0]]
    changed = [_changes(entry, loras) for entry in blocks]
    if first.transform is not Transform.LINEAR or not any(changed):
        return stored.astype(dtype, copy=False)
    out = stored.astype(dtype, copy=not stored.flags.writeable)
    before, after = (x[None] if first.block is None else x for x in (stored, out))
    rows, columns = index[-2:]
    for entry, changes, source, slot in zip(blocks, changed, before, after, strict=True):
        if not changes:
            continue
        total = source.astype(np.float32)
        for lora, module, scale in changes:
            change = lora.changes[module]
            found = (*change.a.shape[:1], *change.b.shape[1:])
            if found != entry.shape[::-1]:
                raise LoRAError([f"{module}: a change of shape {found} is no change of its kernel {entry.shape[::-1]}"])
            total += (np.float32(scale * change.scale) * change.a[rows]) @ change.b[:, columns]
        slot[...] = total
    return out


def _changes(entry: Entry, loras: Sequence[Scaled]) -> list[tuple[LoRA, str, float]]:
    module = entry.name.removesuffix(".weight")
    return [(lora, module, scale) for lora, scale in loras if scale and module in lora.changes]
