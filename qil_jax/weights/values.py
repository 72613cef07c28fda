"""Statistics of a checkpoint's tensors: NaNs, infinities, constants, and checksums independent of the layout."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from qil_jax.files import write_whole
from qil_jax.programs import called
from qil_jax.weights.checkpoint import Checkpoint
from qil_jax.weights.pieces import Rows, released_pieces
from qil_jax.weights.strict import WeightsError, read_json
from qil_jax.weights.tables.entries import Component


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorValues:
    """Statistics of one tensor in its released form.

    Attributes:
      dtype: dtype of the elements.
      shape: released shape.
      sha256: SHA-256 of the tensor's bytes in row-major order.
      nan: number of elements that are NaN.
      infinite: number of elements that are infinite.
      constant: common value of all elements; None if they differ, or if there is only one element.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    nan: int
    infinite: int
    constant: float | None

    @property
    def checksum(self) -> dict[str, Any]:
        """The dtype, shape and SHA-256, by which tensors are compared."""
        return {"dtype": self.dtype, "shape": list(self.shape), "sha256": self.sha256}


def checkpoint_values(checkpoint: Checkpoint, on_bytes: Callable[[int], None]) -> dict[str, TensorValues]:
    """Read every tensor of a sound checkpoint once and return its statistics by COMPONENT/RELEASED_NAME.

    Args:
      checkpoint: checkpoint of either layout.
      on_bytes: callback with the number of bytes that were read since the last call.

    Host memory is bounded by a few pieces of 8 MiB.
    """
    found = {}
    for component in Component:
        pieces = released_pieces(checkpoint[component])
        for name, rows in groupby(pieces, key=lambda piece: piece.entry.name):
            found[f"{component}/{name}"] = _values(rows, on_bytes)
    return found


def _values(pieces: Iterable[Rows], on_bytes: Callable[[int], None]) -> TensorValues:
    digest, nan, infinite, same = hashlib.sha256(), 0, 0, True
    first = entry = None
    for piece in pieces:
        values = np.ascontiguousarray(piece.values)
        bits = values.reshape(-1).view(f"u{values.itemsize}")
        digest.update(bits.view(np.uint8).data)
        if first is None:
            first, entry = values.reshape(-1)[:1], piece.entry
        same = same and bool((bits == first.view(bits.dtype)).all())
        if not np.isfinite(values).all():
            nan += int(np.isnan(values).sum())
            infinite += int(np.isinf(values).sum())
        on_bytes(values.nbytes)
    assert first is not None and entry is not None
    many = np.prod(entry.shape) > 1
    return TensorValues(
        dtype=first.dtype.name,
        shape=entry.shape,
        sha256=digest.hexdigest(),
        nan=nan,
        infinite=infinite,
        constant=float(first[0]) if same and many else None,
    )


def write_checksums(file: Path, values: Mapping[str, TensorValues]) -> None:
    """Write the checksums of all tensors as JSON, atomically."""
    sums = {name: tensor.checksum for name, tensor in sorted(values.items())}
    write_whole(epath.Path(file), (json.dumps(sums, indent=1) + "\n").encode())


def read_checksums(file: Path) -> dict[str, dict[str, Any]]:
    """Read a file that `write_checksums` wrote.

    Raises:
      WeightsError: if the file has another format.
    """
    write = f"write one with {called('validate')} CHECKPOINT --checksums FILE"
    sums = read_json(file, fix=write)
    if not sums or not all(isinstance(v, dict) and v.keys() == {"dtype", "shape", "sha256"} for v in sums.values()):
        raise WeightsError([f"{file}: is no file of checksums; {write}"])
    return sums


def differences(values: Mapping[str, TensorValues], sums: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each tensor that differs from the checksums."""
    problems = [f"{name} is in the file of checksums only" for name in sums if name not in values]
    for name, tensor in values.items():
        if name not in sums:
            problems.append(f"{name} is not in the file of checksums")
            continue
        unlike = [key for key, value in tensor.checksum.items() if sums[name][key] != value]
        if unlike:
            problems.append(f"{name} differs in {', '.join(unlike)}")
    return problems
