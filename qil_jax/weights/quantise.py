"""Quantisation of a checkpoint's linear maps, measured and verified on the files that were written."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Shaped

from qil_jax.choices import Quantisation
from qil_jax.models.quantised import quantised
from qil_jax.programs import called
from qil_jax.weights.architecture import Architecture
from qil_jax.weights.checkpoint import Checkpoint
from qil_jax.weights.convert import ConversionError, copy_weights, prepared
from qil_jax.weights.pieces import Rows, released_pieces
from qil_jax.weights.rewrite import in_threads, write_rows
from qil_jax.weights.safetensors_io import TensorPlan, TensorReader, stored_tensors
from qil_jax.weights.stored import StoredComponent
from qil_jax.weights.tables.entries import Component, Entry
from qil_jax.weights.tables.quantised import QUANTISABLE, SCALE, is_quantisable, quantised_config

REPORT = "quantization.json"
"""File beside the weights of a quantised component that holds its `QuantisationReport`."""
SLACK = 1 + 1e-5
"""Factor of the largest error of a rounding that allows for those of fp32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapError:
    """Difference of a quantised linear map from its weights of full precision.

    Attributes:
      block: index of the block.
      kind: name of the map within its block, such as attn.to_q.
      rms: root mean square of the difference over that of the weights.
      largest: largest difference over the largest weight.
    """

    block: int
    kind: str
    rms: float
    largest: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantisationReport:
    """What became of a component's tensors.

    Attributes:
      how: type of the quantised kernels' elements.
      errors: error of each quantised linear map, by block.
      left: bytes of each tensor of two or more axes that stayed as it was, by released name.
      before: bytes of the component's tensors in the source.
      after: bytes of its tensors, of which `elements` are those of quantised kernels.
      elements: bytes of the quantised kernels.
    """

    how: Quantisation
    errors: tuple[MapError, ...]
    left: Mapping[str, int]
    before: int
    after: int
    elements: int

    def as_json(self) -> dict[str, Any]:
        """The content of quantization.json: errors by block and by kind of map."""
        blocks = {
            str(block): {error.kind: {"rms": error.rms, "max": error.largest} for error in errors}
            for block, errors in groupby(self.errors, key=lambda error: error.block)
        }
        sizes = {"before": self.before, "after": self.after, "quantised": self.elements}
        return {"dtype": self.how.value, "bytes": sizes, "relative_errors": blocks, "left": dict(self.left)}


def quantise_checkpoint(
    source: Path,
    destination: Path,
    how: Quantisation,
    *,
    components: Sequence[Component] = QUANTISABLE,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> dict[Component, QuantisationReport]:
    """Write a checkpoint of the released layout whose linear maps in blocks are quantised; it appears whole.

    Each file is read again and compared with its source before the checkpoint appears. All other tensors stay as they
    are stored. Memory is bounded by a few pieces of 8 MiB.

    Args:
      source: checkpoint folder of either layout.
      destination: folder to write.
      how: type of the quantised kernels' elements.
      components: components to quantise; the others are copied.
      on_bytes: callback with the number of bytes of the source that were read since the last call; those of quantised
        components are read twice.

    Returns:
      The report of each quantised component, which is also stored in its quantization.json.

    Raises:
      ConversionError: if the destination exists, a component is quantised already, or weights are not finite.
      StructureError: if the source is not sound; the message lists every problem.
    """
    checkpoint, parts = Checkpoint(source), dict[Component, _Part]()

    def growth() -> int:
        parts.update({component: _Part(checkpoint[component], how) for component in components})
        return sum(part.bytes_after - part.bytes_before for part in parts.values())

    reports = {}
    with prepared(checkpoint, destination, growth=growth) as folder:
        for component in Component:
            if component not in parts:
                copy_weights(checkpoint[component], folder, on_bytes)
                continue
            reports[component] = parts[component].write(folder, on_bytes)
        Checkpoint(folder).require_sound()
    return reports


class _Part:
    """One component to quantise."""

    def __init__(self, stored: StoredComponent, how: Quantisation):
        self.stored, self.how = stored, how
        before = stored.architecture.quantisation
        if before is not None:
            raise ConversionError(f"{stored.folder} is quantised to {before} already; give the original checkpoint")
        self.config, dtypes = quantised_config(stored.json, how), stored.dtypes()
        size = lambda entry: TensorPlan(name=entry.name, dtype=dtypes[entry.name], shape=entry.shape).bytes
        self.bytes_before = sum(map(size, stored.table))
        self.left = {e.name: size(e) for e in stored.table if len(e.shape) > 1 and not is_quantisable(e)}
        self.plans = [
            TensorPlan(name=e.name, dtype=dtypes[e.name] if e.dtype is None else e.dtype, shape=e.shape)
            for e in Architecture(stored.component, self.config).table
        ]
        self.bytes_after = sum(plan.bytes for plan in self.plans)

    def pieces(self) -> Iterator[Rows]:
        return released_pieces(self.stored)

    def write(self, folder: Path, on_bytes: Callable[[int], None]) -> QuantisationReport:
        """Write the component's config, weights and report to a checkpoint folder, and verify the weights."""
        component = self.stored.component
        within = folder / component
        write_rows(folder, component, self.plans, self.pieces(), self._quantised, on_bytes)
        (within / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        written = TensorReader(stored_tensors(within))
        elements = [info for info in written.tensors.values() if info.dtype == self.how.dtype]
        report = QuantisationReport(
            how=self.how,
            errors=tuple(sorted(self._errors(written, on_bytes), key=lambda error: error.block)),
            left=self.left,
            before=self.bytes_before,
            after=self.bytes_after,
            elements=sum(info.stop - info.start for info in elements),
        )
        (within / REPORT).write_text(json.dumps(report.as_json(), indent=1) + "\n")
        return report

    def _quantised(self, rows: Rows) -> Iterator[tuple[str, Shaped[np.ndarray, "..."]]]:
        name = rows.entry.name
        if not is_quantisable(rows.entry):
            yield name, rows.values
            return
        with np.errstate(invalid="ignore", over="ignore"):
            elements, scale = quantised(rows.values, self.how, axis=-1)
        if not np.isfinite(scale).all():
            raise ConversionError(
                f"{self.stored.folder}: {name} holds NaN or infinite values; find them with "
                f"{called('validate')} --values"
            )
        yield name, elements
        yield name + SCALE, scale

    def _errors(self, written: TensorReader, on_bytes: Callable[[int], None]) -> Iterator[MapError]:
        """The error of each quantised map; a ConversionError is raised if what was written is not what should be."""

        def compared(rows: Rows) -> tuple[Entry, int, Float64[np.ndarray, "4"]]:
            part = slice(rows.first, rows.first + len(rows.values))
            found = written[rows.entry.name][part]
            if not is_quantisable(rows.entry):
                if found.tobytes() != np.ascontiguousarray(rows.values).tobytes():
                    raise ConversionError(f"{rows.entry.name} was not written as it is stored; is the disk sound?")
                return rows.entry, rows.values.nbytes, np.zeros(4)
            scale = written[rows.entry.name + SCALE][part, None]
            weights = rows.values.astype(np.float32)
            error = np.abs(found.astype(np.float32) * scale - weights)
            if not (error <= _largest_error(weights, scale, self.how)).all():
                raise ConversionError(f"{rows.entry.name} differs by more than its rounding; is the disk sound?")
            sums = [np.square(error).sum(dtype=np.float64), np.square(weights).sum(dtype=np.float64)]
            return rows.entry, rows.values.nbytes, np.array([*sums, error.max(), np.abs(weights).max()])

        for entry, results in groupby(in_threads(compared, self.pieces()), key=lambda result: result[0]):
            measured = []
            for _, size, values in results:
                measured.append(values)
                on_bytes(size)
            written.release()
            if is_quantisable(entry):
                yield _map_error(entry, np.stack(measured))


def _map_error(entry: Entry, measured: Float64[np.ndarray, "p 4"]) -> MapError:
    """The error of a map from [squared error, squared weights, largest error, largest weight] of each of its pieces."""
    error, weights = measured[:, :2].sum(axis=0)
    largest, weight = measured[:, 2:].max(axis=0)
    assert entry.block is not None
    return MapError(
        block=entry.block,
        kind=entry.name.removesuffix(".weight").split(f".{entry.block}.", 1)[1],
        rms=float(np.sqrt(error / weights)) if weights else 0.0,
        largest=float(largest / weight) if weight else 0.0,
    )


def _largest_error(
    weights: Float32[np.ndarray, "o i"], scale: Float32[np.ndarray, "o 1"], how: Quantisation
) -> Float32[np.ndarray, "..."]:
    """The largest error of rounding: half of the distance between neighbours, which grows with e4m3's exponent."""
    if how is Quantisation.INT8:
        return scale * np.float32(0.5 * SLACK)
    return np.maximum(np.abs(weights) / 16, scale / 1024) * np.float32(SLACK)
