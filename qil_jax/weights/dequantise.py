"""Writing of quantised weights in full precision, weight = elements * scale, rounded once.

The weights that were quantised do not come back: what was rounded then is lost.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped

from qil_jax.weights.architecture import Architecture
from qil_jax.weights.checkpoint import Checkpoint
from qil_jax.weights.comfy import ComfyFile, read_comfy
from qil_jax.weights.convert import ConversionError, copy_weights, prepared
from qil_jax.weights.pieces import Rows, released_pieces, tensor_rows
from qil_jax.weights.quantise import REPORT
from qil_jax.weights.rewrite import write_rows
from qil_jax.weights.safetensors_io import TensorPlan
from qil_jax.weights.stored import StoredComponent
from qil_jax.weights.structure import FLOATS
from qil_jax.weights.tables.entries import Component, Entry
from qil_jax.weights.tables.quantised import QUANTISABLE, SCALE, is_scale, plain_config

OnBytes = Callable[[int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stored:
    """A component's tensors, some of which are quantised.

    Attributes:
      architecture: its architecture in full precision.
      dtypes: dtype of each tensor, by released name.
      pieces: function that returns rows of all tensors.
      scales: scale of each quantised weight by released name, [o] or [1].
    """

    architecture: Architecture
    dtypes: Mapping[str, np.dtype]
    pieces: Callable[[], Iterator[Rows]]
    scales: Mapping[str, Float32[np.ndarray, " o"]]

    def write(self, folder: Path, component: Component, dtype: np.dtype, on_bytes: OnBytes) -> None:
        """Write config and weights to a checkpoint folder."""
        plans = self.plans(dtype)
        wanted = {plan.name: plan.dtype for plan in plans}

        def rewrite(rows: Rows) -> Iterator[tuple[str, Shaped[np.ndarray, "..."]]]:
            name = rows.entry.name
            if not is_scale(rows.entry):
                yield name, self._full_precision(rows).astype(wanted[name], copy=False)

        write_rows(folder, component, plans, self.pieces(), rewrite, on_bytes)
        (folder / component / "config.json").write_text(json.dumps(dict(self.architecture.json), indent=2) + "\n")

    def plans(self, dtype: np.dtype) -> list[TensorPlan]:
        """The tensors in full precision: those of parameters of one float dtype as they are, the others in `dtype`."""
        plans = []
        for target in self.architecture.targets.values():
            stored = {self.dtypes[entry.name] for entry in target.entries}
            kept = stored.pop() if len(stored) == 1 else dtype
            kept = kept if kept.name in FLOATS else dtype
            plans += [TensorPlan(name=entry.name, dtype=kept, shape=entry.shape) for entry in target.entries]
        return plans

    def growth(self, dtype: np.dtype, before: int) -> int:
        """Bytes by which the component grows from `before`."""
        return sum(plan.bytes for plan in self.plans(dtype)) - before

    def _full_precision(self, rows: Rows) -> Shaped[np.ndarray, "..."]:
        scale = self.scales.get(rows.entry.name)
        if scale is None:
            return rows.values
        scale = scale if len(scale) == 1 else scale[rows.first : rows.first + len(rows.values)]
        return rows.values.astype(np.float32) * scale[:, None]


def dequantise_checkpoint(
    source: Path, destination: Path, dtype: str, *, on_bytes: OnBytes = lambda _: None
) -> list[Component]:
    """Write a quantised checkpoint, of either layout, as one of the released layout in full precision.

    Args:
      source: checkpoint folder.
      destination: folder to write, which appears whole.
      dtype: dtype of the tensors that are quantised; the others stay as they are stored.
      on_bytes: callback with the number of bytes that were read since the last call.

    Returns:
      The components that were quantised.

    Raises:
      ConversionError: if the destination exists, or no component is quantised.
      StructureError: if the source is not sound; the message lists every problem.
    """
    checkpoint, parts = Checkpoint(source), dict[Component, _Stored]()

    def growth() -> int:
        for component in QUANTISABLE:
            if checkpoint[component].architecture.quantisation is not None:
                parts[component] = _stored(checkpoint[component])
        if not parts:
            raise ConversionError(f"{source}: no component is quantised; convert it by to-orbax or to-diffusers")
        return sum(part.growth(np.dtype(dtype), _size(part.dtypes, part.architecture.table)) for part in parts.values())

    with prepared(checkpoint, destination, growth=growth) as folder:
        _fill(folder, checkpoint, parts, dtype, on_bytes)
    return list(parts)


def dequantise_comfy(
    file: Path, base: Path, destination: Path, dtype: str, *, on_bytes: OnBytes = lambda _: None
) -> ComfyFile:
    """Write a checkpoint of the released layout with the transformer of a file that ComfyUI reads, in full precision.

    Args:
      file: safetensors file of a transformer whose weights are partly float8_e4m3fn, with or without scales.
      base: checkpoint folder that provides all other components and the transformer's config.
      destination: folder to write, which appears whole.
      dtype: dtype of the parameters of which the file stores blocks as float8; the others stay as they are stored.
      on_bytes: callback with the number of bytes that were read since the last call.

    Returns:
      What the file holds.

    Raises:
      ConversionError: if the destination exists.
      StructureError: if the base is not sound; the message lists every problem.
      WeightsError: if the file does not hold the base's transformer; the message lists every problem.
    """
    checkpoint = Checkpoint(base)
    before = checkpoint[Component.TRANSFORMER]
    architecture = _plain(before)
    comfy = read_comfy(file, architecture.table)
    stored = _Stored(
        architecture=architecture,
        dtypes=comfy.dtypes,
        pieces=lambda: tensor_rows(comfy.reader, comfy.names, architecture.table),
        scales=comfy.scales,
    )
    growth = lambda: stored.growth(np.dtype(dtype), _size(before.dtypes(), before.table))
    with prepared(checkpoint, destination, growth=growth) as folder:
        _fill(folder, checkpoint, {Component.TRANSFORMER: stored}, dtype, on_bytes)
    return comfy


def _fill(folder: Path, others: Checkpoint, parts: Mapping[Component, _Stored], dtype: str, on_bytes: OnBytes) -> None:
    for component in Component:
        if component in parts:
            parts[component].write(folder, component, np.dtype(dtype), on_bytes)
            (folder / component / REPORT).unlink(missing_ok=True)
        else:
            copy_weights(others[component], folder, on_bytes)
    Checkpoint(folder).require_sound()


def _stored(stored: StoredComponent) -> _Stored:
    reader, scales = stored.source(), {}
    for target in stored.targets.values():
        if is_scale(target.entries[0]):
            values = reader.read(target, tuple(map(slice, target.shape)))
            scales |= {e.name.removesuffix(SCALE): v for e, v in zip(target.entries, values, strict=True)}
    return _Stored(
        architecture=_plain(stored),
        dtypes=stored.dtypes(),
        pieces=lambda: released_pieces(stored),
        scales=scales,
    )


def _plain(stored: StoredComponent) -> Architecture:
    """The architecture in full precision."""
    return Architecture(stored.component, plain_config(stored.json))


def _size(dtypes: Mapping[str, np.dtype], table: Sequence[Entry]) -> int:
    return sum(TensorPlan(name=e.name, dtype=dtypes[e.name], shape=e.shape).bytes for e in table)
