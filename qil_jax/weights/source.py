"""Piecewise reading of the stored parameters of one component, in either layout."""

from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import tensorstore as ts
from jaxtyping import Shaped

from qil_jax.accelerators import host_device
from qil_jax.models.paths import dotted
from qil_jax.weights.safetensors_io import TensorReader
from qil_jax.weights.strict import CONVERT, WeightsError, read_json
from qil_jax.weights.tables.entries import Entry, Target

PARAMS = "params"
"""Subfolder of a component that holds its orbax parameters."""
SIDECAR = "temporal.safetensors"
"""File of the VAE with the temporal taps and convolutions that do not affect single pictures."""


class Layout(StrEnum):
    """The storage format of a checkpoint's weights."""

    DIFFUSERS = "diffusers"  # safetensors under released names
    ORBAX = "orbax"  # our parameter tree


@runtime_checkable
class ParameterSource(Protocol):
    """A reader of slices of parameters."""

    def read(self, target: Target, index: tuple[slice, ...]) -> Shaped[np.ndarray, "..."]:
        """The slice of a parameter at `index`, which has one slice per dimension."""
        ...

    def dtype(self, target: Target) -> np.dtype:
        """The dtype in which a parameter is stored."""
        ...


class SafetensorsSource:
    """A reader that assembles parameters from released tensors; `names` maps released names to those in the files."""

    def __init__(self, reader: TensorReader, names: dict[str, str]):
        self._reader, self._names = reader, names

    def dtype(self, target: Target) -> np.dtype:
        """The dtype in which a parameter is stored."""
        return self._reader.tensors[self._names[target.entries[0].name]].dtype

    def read(self, target: Target, index: tuple[slice, ...]) -> Shaped[np.ndarray, "..."]:
        """The slice of a parameter at `index`, with its blocks stacked. Several threads may read at once."""
        first = target.entries[0]
        if first.block is None:
            return self._part(first, index)
        blocks = target.entries[index[0]]
        if len(blocks) == 1:
            return self._part(blocks[0], index[1:])[None]
        first = self._part(blocks[0], index[1:])
        found = np.empty((len(blocks), *first.shape), first.dtype)  # filled block by block, never held twice
        found[0] = first
        for place, entry in enumerate(blocks[1:], 1):
            found[place] = self._part(entry, index[1:])
        return found

    def _part(self, entry: Entry, index: tuple[slice, ...]) -> np.ndarray:
        """A copy of a slice of one tensor, whose pages in memory are released."""
        name = self._names[entry.name]
        part = entry.transform.forward(self._reader[name])[index]
        copied = part.copy() if part.flags.c_contiguous else row_major(part)
        self._reader.release(name)
        return copied


class OrbaxSource:
    """A reader of orbax parameters, each of which is one zarr array."""

    def __init__(self, component: Path):
        self._folder = component / PARAMS
        self._open: dict[str, Any] = {}

    def dtype(self, target: Target) -> np.dtype:
        """The dtype in which a parameter is stored."""
        return np.dtype(self.array(target.path).dtype.numpy_dtype)

    def read(self, target: Target, index: tuple[slice, ...]) -> Shaped[np.ndarray, "..."]:
        """The slice of a parameter at `index`."""
        return self.array(target.path)[index].read().result()

    def array(self, path: str) -> Any:
        """The tensorstore array of a parameter.

        Raises:
          FileNotFoundError: if there is no such array.
          WeightsError: if the array's metadata cannot be read.
        """
        if path not in self._open:
            spec = zarr_spec(self._folder, path)
            folder = Path(spec["kvstore"]["path"])
            if not folder.is_dir():
                raise FileNotFoundError(folder)
            metadata = read_json(folder / ".zarray", fix=CONVERT)  # tensorstore's parser may crash on malformed JSON
            if metadata.get("compressor") is not None or metadata.get("filters") is not None:
                raise WeightsError([f"{folder}: is compressed, which is not read; {CONVERT}"])
            try:
                self._open[path] = ts.open(spec, read=True, open=True).result()
            except Exception as error:  # ValueError or others, depending on tensorstore's status code
                raise WeightsError([f"{folder}: is no zarr array ({error}); {CONVERT}"]) from error
        return self._open[path]


def zarr_spec(folder: Path, path: str) -> dict[str, Any]:
    """The tensorstore spec of a parameter, which orbax stores in a folder with the parameter's dotted path as name."""
    return {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str((folder / dotted(path)).resolve())},
        "context": {"file_io_sync": False, "cache_pool": {"total_bytes_limit": 0}},
    }


def row_major(x: Shaped[np.ndarray, "*n"]) -> Shaped[np.ndarray, "*n"]:
    """The array `x`, or a copy of it, in row-major order: XLA transposes several times faster than numpy."""
    if x.flags.c_contiguous:
        return x
    bits = x.view(f"u{x.dtype.itemsize}")
    return np.asarray(jax.device_put(bits, host_device())).view(x.dtype)
