"""Reading and writing of safetensors one tensor at a time, in single files or in shards with an index.

Files are memory-mapped for reading: a tensor is a view, and only accessed bytes are read. The format is 8 bytes of
header length, a JSON header, and the tensors' bytes.
"""

import dataclasses
import json
import math
import mmap
import os
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
from jaxtyping import Shaped

from qil_jax.weights.strict import DTYPES, METADATA, ShardIndex, TensorInfo, WeightsError, read_header, read_index

CODES = {dtype: code for code, dtype in DTYPES.items()}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SHARD_BYTES = 9_990_000_000


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component, as listed by its index.

    Raises:
      WeightsError: if there are none (the message names pickle files found instead), or files of the index are absent.
    """
    index = _index_file(folder)
    if index is not None:
        return _indexed_files(index, read_index(index))
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        raise WeightsError([f"{folder}: {len(files)} safetensors files but no index; restore *.safetensors.index.json"])
    if not files:
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLES) if folder.is_dir() else []
        found = f"; found {', '.join(pickles)}: pickles run code when read, convert them to safetensors" * bool(pickles)
        raise WeightsError([f"{folder}: no safetensors file{found}"])
    return files


def _indexed_files(index: Path, said: ShardIndex) -> list[Path]:
    names = sorted(set(said.weight_map.values()))
    missing = [name for name in names if not index.with_name(name).is_file()]
    if missing:
        raise WeightsError(
            [f"{index.with_name(name)}: named by {index.name} but missing; download it again" for name in missing]
        )
    return [index.with_name(name) for name in names]


def _index_file(folder: Path) -> Path | None:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise WeightsError([f"{folder}: several index files ({', '.join(i.name for i in indices)}); keep one"])
    return indices[0] if indices else None


def stored_tensors(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a component folder by their names in the files, without reading tensors.

    Raises:
      WeightsError: if files are invalid, or an index and its shards differ; all problems are listed.
    """
    index = _index_file(folder)
    if index is None:
        return read_headers(weight_files(folder))
    said, problems = read_index(index), []
    tensors = read_headers(_indexed_files(index, said))
    for name, shard in said.weight_map.items():
        if name not in tensors:
            problems.append(f"{index}: {name} is in none of the shards; download both again")
        elif tensors[name].file.name != shard:
            problems.append(f"{index}: {name} is not in {shard} but in {tensors[name].file.name}; download both again")
    unsaid = [name for name in tensors if name not in said.weight_map]
    problems += [f"{index}: {name} of {tensors[name].file.name} is not named; download both again" for name in unsaid]
    size = sum(info.stop - info.start for info in tensors.values())
    if said.total_size not in (None, size):
        problems.append(f"{index}: total_size is {said.total_size}, the shards hold {size} bytes; download both again")
    if problems:
        raise WeightsError(problems)
    return tensors


def read_headers(files: list[Path]) -> dict[str, TensorInfo]:
    """All tensors of some files by name, without reading tensors.

    Raises:
      WeightsError: if files are invalid or a name occurs twice; all problems are listed.
    """
    problems: list[str] = []
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        try:
            found = read_header(file)
        except WeightsError as error:
            problems += error.problems
            continue
        problems += [f"{name}: both in {tensors[name].file} and in {file}" for name in found if name in tensors]
        tensors.update(found)
    if problems:
        raise WeightsError(problems)
    return tensors


class TensorReader:
    """Read-only views of tensors in memory-mapped files, for any number of threads."""

    def __init__(self, tensors: Mapping[str, TensorInfo]):
        self.tensors = tensors
        self._maps: dict[Path, mmap.mmap] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> np.ndarray:
        """A view of one tensor; its bytes are read on access."""
        info = self.tensors[name]
        with self._lock:
            if info.file not in self._maps:
                with info.file.open("rb") as stream:
                    self._maps[info.file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        data = np.frombuffer(self._maps[info.file], np.uint8, info.stop - info.start, info.start)
        return data.view(info.dtype).reshape(info.shape) if info.stop > info.start else np.empty(info.shape, info.dtype)

    def release(self, name: str | None = None) -> None:
        """Release the memory pages of a tensor, or of all of them; views stay valid and are read again on access."""
        if name is None:
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)
        elif (info := self.tensors[name]).file in self._maps and info.stop > info.start:
            first = info.start // mmap.PAGESIZE * mmap.PAGESIZE
            self._maps[info.file].madvise(mmap.MADV_DONTNEED, first, info.stop - first)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """Name, dtype and shape of a tensor to be written.

    Attributes:
      name: name of the tensor in the file.
      dtype: dtype of the elements.
      shape: shape of the stored tensor.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The size of the tensor on disk in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class ShardedWriter:
    """A writer of shards: headers are written first, then tensors in any order from any thread."""

    def __init__(
        self,
        folder: Path,
        stem: str,
        plans: list[TensorPlan],
        *,
        shard_bytes: int = SHARD_BYTES,
        metadata: Mapping[str, str] = MappingProxyType({}),
    ):
        self._metadata = {"format": "pt", **metadata}
        shards = list(_shards(plans, shard_bytes))
        self._files: list[BinaryIO] = []
        self._places: dict[str, tuple[BinaryIO, int, TensorPlan]] = {}
        weight_map = {}
        for i, shard in enumerate(shards):
            number = f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            file = folder / f"{stem}{number}.safetensors"
            try:
                self._open(file, shard)
            except OSError:
                self.close()
                raise
            weight_map |= {plan.name: file.name for plan in shard}
        if len(shards) > 1:
            index = {"metadata": {"total_size": sum(p.bytes for p in plans)}, "weight_map": weight_map}
            (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def _open(self, file: Path, plans: list[TensorPlan]) -> None:
        header: dict[str, object] = {METADATA: self._metadata}
        offset = 0
        for plan in plans:
            spot = [offset, offset + plan.bytes]
            header[plan.name] = {"dtype": CODES[plan.dtype], "shape": list(plan.shape), "data_offsets": spot}
            offset += plan.bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        stream = file.open("xb", buffering=0)
        self._files.append(stream)
        stream.write(struct.pack("<Q", len(text)) + text)
        start = 8 + len(text)
        stream.truncate(start + offset)
        for plan in plans:
            self._places[plan.name] = (stream, start, plan)
            start += plan.bytes

    def write(self, name: str, rows: Shaped[np.ndarray, "..."], *, first: int = 0) -> None:
        """Write the rows of a tensor that begin at index `first`.

        Raises:
          ValueError: if dtype or shape differ from the plan.
        """
        stream, start, plan = self._places[name]
        if rows.dtype != plan.dtype or rows.shape[1:] != plan.shape[1:] or first + len(rows) > plan.shape[0]:
            raise ValueError(f"{name}: {rows.dtype} {rows.shape} from row {first} does not fit {plan}")
        data = memoryview(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        start += first * (plan.bytes // plan.shape[0])
        while data:
            written = os.pwrite(stream.fileno(), data, start)
            data, start = data[written:], start + written

    def close(self) -> None:
        """Close all files."""
        for stream in self._files:
            stream.close()


def _shards(plans: list[TensorPlan], limit: int) -> Iterator[list[TensorPlan]]:
    shard: list[TensorPlan] = []
    size = 0
    for plan in plans:
        if shard and size + plan.bytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(plan)
        size += plan.bytes
    yield shard
