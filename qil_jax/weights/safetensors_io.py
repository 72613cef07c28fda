"""Safetensors files read and written one tensor at a time, in single files or shards with an index.

Reading maps the files: a tensor is a view, and only the bytes that are touched are read. The format is 8 bytes of
header length, a JSON header, and the tensors' bytes.
"""

import dataclasses
import json
import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SHARD_BYTES = 9_990_000_000


class WeightsError(ValueError):
    """Weight files are missing, damaged, or of a kind that is not read. The message lists every problem."""

    def __init__(self, problems: list[str]):
        self.problems = tuple(problems)
        super().__init__("cannot read the weights:\n  " + "\n  ".join(problems))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies. Offsets are from the start of the file, in bytes."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component, as its index lists them.

    Raises:
      WeightsError: if there are none (naming pickles found instead), or the index names files that are not there.
    """
    if folder.is_file():
        return [folder]
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise WeightsError([f"{folder}: several index files ({', '.join(i.name for i in indices)}); keep one"])
    if indices:
        names = sorted(set(_read_json(indices[0])["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise WeightsError(
                [f"{folder / name}: named by {indices[0].name} but missing; download it again" for name in missing]
            )
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        raise WeightsError([f"{folder}: {len(files)} safetensors files but no index; restore *.safetensors.index.json"])
    if not files:
        pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLES) if folder.is_dir() else []
        found = f"; found {', '.join(pickles)}: pickles run code when read, convert them to safetensors" * bool(pickles)
        raise WeightsError([f"{folder}: no safetensors file{found}"])
    return files


def read_headers(files: list[Path]) -> dict[str, TensorInfo]:
    """All tensors of some files by name; no tensor is read.

    Raises:
      WeightsError: listing every truncated or malformed file and every name that occurs twice.
    """
    problems: list[str] = []
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        try:
            found = _read_header(file)
        except (WeightsError, OSError) as error:
            problems += error.problems if isinstance(error, WeightsError) else [f"{file}: {error}"]
            continue
        problems += [f"{name}: both in {tensors[name].file} and in {file}" for name in found if name in tensors]
        tensors.update(found)
    if problems:
        raise WeightsError(problems)
    return tensors


def _read_header(file: Path) -> dict[str, TensorInfo]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= size - 8:
            raise WeightsError([f"{file}: no safetensors header ({size} bytes); truncated? download it again"])
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            entries = {name: (v["dtype"], tuple(v["shape"]), *v["data_offsets"]) for name, v in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError([f"{file}: malformed header ({error}); download it again"]) from error
    problems, tensors = [], {}
    base = 8 + length
    for name, (code, shape, start, stop) in entries.items():
        dtype = DTYPES.get(code)
        if dtype is None:
            problems.append(f"{file}: {name} has dtype {code}, known are {', '.join(DTYPES)}")
        elif stop - start != math.prod(shape) * dtype.itemsize:
            problems.append(f"{file}: {name} of shape {list(shape)} and dtype {code} does not fill its bytes")
        elif start < 0 or base + stop > size:
            problems.append(f"{file}: {name} ends at byte {base + stop} of {size}: truncated, download it again")
        else:
            tensors[name] = TensorInfo(file=file, dtype=dtype, shape=shape, start=base + start, stop=base + stop)
    if problems:
        raise WeightsError(problems)
    return tensors


class TensorReader:
    """Read-only views of tensors in mapped files."""

    def __init__(self, tensors: Mapping[str, TensorInfo]):
        self.tensors = tensors
        self._maps: dict[Path, mmap.mmap] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        """A view of one tensor; bytes are read when they are touched."""
        info = self.tensors[name]
        if info.file not in self._maps:
            with info.file.open("rb") as stream:
                self._maps[info.file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        data = np.frombuffer(self._maps[info.file], np.uint8, info.stop - info.start, info.start)
        return data.view(info.dtype).reshape(info.shape) if info.stop > info.start else np.empty(info.shape, info.dtype)

    def release(self) -> None:
        """Give the pages of all tensors read so far back to the system; views stay valid and are read again."""
        for mapped in self._maps.values():
            mapped.madvise(mmap.MADV_DONTNEED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """A tensor to be written."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


class ShardedWriter:
    """Safetensors shards whose headers are written first and whose tensors follow in any order, from any thread."""

    def __init__(self, folder: Path, stem: str, plans: list[TensorPlan], *, shard_bytes: int = SHARD_BYTES):
        shards = list(_shards(plans, shard_bytes))
        self._files: list[BinaryIO] = []
        self._places: dict[str, tuple[BinaryIO, int, TensorPlan]] = {}
        weight_map = {}
        for i, shard in enumerate(shards):
            number = f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            file = folder / f"{stem}{number}.safetensors"
            self._open(file, shard)
            weight_map |= {plan.name: file.name for plan in shard}
        if len(shards) > 1:
            index = {"metadata": {"total_size": sum(p.bytes for p in plans)}, "weight_map": weight_map}
            (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def _open(self, file: Path, plans: list[TensorPlan]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
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

    def write(self, name: str, rows: np.ndarray, *, first: int = 0) -> None:
        """Fill a tensor, or its rows from `first` on."""
        stream, start, plan = self._places[name]
        if rows.dtype != plan.dtype or rows.shape[1:] != plan.shape[1:] or first + len(rows) > plan.shape[0]:
            raise ValueError(f"{name}: {rows.dtype} {rows.shape} from row {first} does not fit {plan}")
        data = memoryview(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        start += first * (plan.bytes // plan.shape[0])
        while data:
            written = os.pwrite(stream.fileno(), data, start)
            data, start = data[written:], start + written

    def close(self) -> None:
        """Hand everything to the operating system."""
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


def _read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError([f"{file}: {error}"]) from error
