"""What the tensors of a checkpoint hold: NaN, infinities, constants, and a checksum that outlasts conversion."""

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
from qil_jax.weights.pieces import Rows, released_pieces
from qil_jax.weights.strict import WeightsError, read_json
from qil_jax.weights.structure import component_config
from qil_jax.weights.tables import table_of
from qil_jax.weights.tables.entries import Component

WRITE = "write one with tools/validate.py CHECKPOINT --checksums FILE"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorValues:
    """What one tensor holds, as it is stored in the released layout.

    Attributes:
      dtype: of its elements.
      shape: as released.
      sha256: of its bytes, row after row.
      nan: how many elements are NaN.
      infinite: how many are an infinity.
      constant: the value that all elements share; None if they do not, or if there is only one.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    nan: int
    infinite: int
    constant: float | None

    @property
    def checksum(self) -> dict[str, Any]:
        """What equal tensors have in common."""
        return {"dtype": self.dtype, "shape": list(self.shape), "sha256": self.sha256}


def checkpoint_values(checkpoint: Path, on_bytes: Callable[[int], None]) -> dict[str, TensorValues]:
    """Read every tensor of a sound checkpoint once; what they hold by COMPONENT/RELEASED_NAME.

    Args:
      checkpoint: of either layout.
      on_bytes: called with the number of bytes that were read since the last call.

    Host memory: a few pieces of 8 MiB.
    """
    found = {}
    for component in Component:
        table = table_of(component, component_config(checkpoint, component))
        pieces = released_pieces(checkpoint / component, component, table)
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
    """Write the checksums of all tensors as JSON; the file appears whole."""
    sums = {name: tensor.checksum for name, tensor in sorted(values.items())}
    write_whole(epath.Path(file), (json.dumps(sums, indent=1) + "\n").encode())


def read_checksums(file: Path) -> dict[str, dict[str, Any]]:
    """The file that `write_checksums` wrote.

    Raises:
      WeightsError: if it is none.
    """
    sums = read_json(file, fix=WRITE)
    if not sums or not all(isinstance(v, dict) and v.keys() == {"dtype", "shape", "sha256"} for v in sums.values()):
        raise WeightsError([f"{file}: is no file of checksums; {WRITE}"])
    return sums


def differences(values: Mapping[str, TensorValues], sums: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each tensor that is not what the checksums say."""
    problems = [f"{name} is in the file of checksums only" for name in sums if name not in values]
    for name, tensor in values.items():
        if name not in sums:
            problems.append(f"{name} is not in the file of checksums")
            continue
        unlike = [key for key, value in tensor.checksum.items() if sums[name][key] != value]
        if unlike:
            problems.append(f"{name} differs in {', '.join(unlike)}")
    return problems
