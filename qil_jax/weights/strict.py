"""Strict parsers of a checkpoint's files: JSON objects, safetensors headers, and shard indexes.

For any input bytes, each function returns a valid result or raises a WeightsError with every problem of the file.
"""

import dataclasses
import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from qil_jax.errors import ProblemsError, QilError, halved, shown
from qil_jax.strict_json import MOST_BYTES, parse

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
MOST_DEPTH = 64
"""Maximum nesting depth of JSON objects and lists."""
MOST_AXES = 32
METADATA = "__metadata__"
"""The key of a safetensors header that names no tensor."""
MOST_NAME = 1000
DOWNLOAD = "download it again"
COPY = "copy it again from the release"
CONVERT = "convert again"
"""Advice in messages: for large files of the release, for its small files, and for converted files."""
LFS = b"version https://git-lfs"
"""The beginning of what Git leaves in place of a large file where Git LFS is not installed."""
POINTER = "is a pointer of Git LFS, not the file: install git-lfs, then run `git lfs pull` in its folder"
GGUF = b"GGUF"


class WeightsError(ProblemsError):
    """Files of a checkpoint are missing, damaged, or of an unsupported kind. The message lists every problem."""

    def __init__(self, problems: list[str]):
        super().__init__("cannot read the checkpoint", problems)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Location, dtype and shape of a stored tensor.

    Attributes:
      file: file that holds the tensor.
      dtype: dtype of the elements.
      shape: shape of the stored tensor.
      start, stop: range of the tensor's bytes, relative to the start of the file.
    """

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The content of a *.safetensors.index.json.

    Attributes:
      weight_map: mapping from the name of a tensor to the name of its file.
      total_size: total bytes of all tensors; None if the index does not state it.
    """

    weight_map: Mapping[str, str]
    total_size: int | float | None


def read_json(file: Path, *, fix: str = DOWNLOAD) -> dict[str, Any]:
    """Parse a JSON file that holds an object: UTF-8, unique keys, finite numbers, at most 64 levels.

    Args:
      file: JSON file of at most 100 MB.
      fix: advice at the end of error messages.

    Raises:
      WeightsError: if the file is missing, or holds anything else.
    """
    if not file.is_file():
        raise WeightsError([f"{file}: missing; {fix}"])
    try:
        size = file.stat().st_size
        data = file.read_bytes() if size <= MOST_BYTES else b""
    except OSError as error:
        raise WeightsError([f"{file}: {error.strerror or error}; {fix}"]) from error
    if size > MOST_BYTES:
        raise WeightsError([f"{file}: {size} bytes, at most {MOST_BYTES} are read; {fix}"])
    return parse_object(data, where=str(file), fix=fix)


def parse_object(data: bytes, *, where: str, fix: str = DOWNLOAD) -> dict[str, Any]:
    """Parse JSON bytes under the restrictions of `read_json`.

    Raises:
      WeightsError: if the bytes are anything else; the message names `where`.
    """
    if data.startswith(LFS):
        raise WeightsError([f"{where}: {POINTER}"])
    try:
        values = parse(data, depth=MOST_DEPTH)
    except QilError as error:
        raise WeightsError([f"{where}: {error}; {fix}"]) from error
    if re.search(rb"\\u[dD][89a-fA-F]", data) and halved(json.dumps(values, ensure_ascii=False)):
        raise WeightsError([f"{where}: holds half of a surrogate pair, which cannot be printed; {fix}"])
    if not isinstance(values, dict):
        raise WeightsError([f"{where}: holds no JSON object; {fix}"])
    return values


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file by name, whose bytes must be contiguous and fill the file.

    Raises:
      WeightsError: if the header is invalid; the message lists every problem.
    """
    header, base, size = _header(file)
    problems = _metadata_problems(file, header.pop(METADATA, None))
    tensors = {}
    for name, entry in header.items():
        try:
            tensors[name] = _tensor(file, name, entry, base)
        except ValueError as error:
            problems.append(f"{file}: tensor {shown(name)} {error}; {DOWNLOAD}")
    problems = problems or _layout_problems(file, tensors, base, size)
    if problems:
        raise WeightsError(problems)
    return tensors


def read_metadata(file: Path) -> dict[str, str]:
    """The texts, by name, that a safetensors file holds beside its tensors; empty if there are none.

    Raises:
      WeightsError: if the header is no JSON object, or these are no texts.
    """
    metadata = _header(file)[0].get(METADATA)
    problems = _metadata_problems(file, metadata)
    if problems:
        raise WeightsError(problems)
    return metadata or {}


def _header(file: Path) -> tuple[dict[str, Any], int, int]:
    """The JSON of a safetensors header, the byte at which it ends, and the size of the file."""
    try:
        size = file.stat().st_size
        data = b""
        if file.is_file():  # reading a pipe would never end
            with file.open("rb") as stream:
                head = stream.read(8)
                length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
                if head == LFS[:8]:
                    raise WeightsError([f"{file}: {POINTER}"])
                if head.startswith(GGUF):
                    raise WeightsError([f"{file}: is a GGUF file, which is not read: give the released safetensors"])
                data = stream.read(length) if 2 <= length <= min(size - 8, MOST_BYTES) else b""
    except OSError as error:
        raise WeightsError([f"{file}: {error.strerror or error}"]) from error
    if not data:
        raise WeightsError([f"{file}: no safetensors header ({size} bytes); truncated? {DOWNLOAD}"])
    if not data.startswith(b"{"):
        raise WeightsError([f"{file}: malformed header (it begins with {shown(data[:8])}); {DOWNLOAD}"])
    return parse_object(data, where=f"{file}: malformed header"), 8 + len(data), size


def _metadata_problems(file: Path, metadata: Any) -> list[str]:
    if metadata is None or (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        return []
    return [f"{file}: {METADATA} must be texts by name; {DOWNLOAD}"]


def _tensor(file: Path, name: str, entry: Any, base: int) -> TensorInfo:
    """Parse the header's entry of a tensor; a ValueError describes the problem of an invalid one."""
    if not _is_name(name):
        raise ValueError("has no readable name")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError("needs dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise ValueError(f"has dtype {shown(code)}, known are {', '.join(DTYPES)}")
    if not _are_counts(shape) or len(shape) > MOST_AXES:
        raise ValueError(f"has shape {shown(shape)}, which must be a list of whole numbers")
    if math.prod(max(side, 1) for side in shape) * dtype.itemsize >= 1 << 63:
        raise ValueError(f"has shape {shown(shape)}, which is beyond any memory")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"has data_offsets {shown(offsets)}, which must be two whole numbers")
    start, stop = offsets
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"of shape {shape} and dtype {code} does not fill its bytes, {start} to {stop}")
    return TensorInfo(file=file, dtype=dtype, shape=tuple(shape), start=base + start, stop=base + stop)


def _layout_problems(file: Path, tensors: Mapping[str, TensorInfo], base: int, size: int) -> list[str]:
    """Messages for bytes that belong to two tensors, to none, or lie beyond the end of the file."""
    end, last = base, "the header"
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != end:
            what = "overlaps" if info.start < end else "leaves bytes unused after"
            return [f"{file}: tensor {name} {what} {last}; {DOWNLOAD}"]
        end, last = info.stop, name
    if end > size:
        return [f"{file}: {last} ends at byte {end} of {size}: truncated, {DOWNLOAD}"]
    if end < size:
        return [f"{file}: {size - end} bytes follow the last tensor; {DOWNLOAD}"]
    return []


def read_index(file: Path) -> ShardIndex:
    """Parse the index of a component's shards.

    Raises:
      WeightsError: if the index is invalid; the message lists every problem.
    """
    values, problems = read_json(file), []
    notes, weight_map = values.get("metadata", {}), values.get("weight_map")
    total = notes.get("total_size") if isinstance(notes, dict) else None
    if not isinstance(notes, dict) or isinstance(total, bool) or not isinstance(total, int | float | None):
        problems.append(f"{file}: metadata must be an object whose total_size is a number; {DOWNLOAD}")
    if not isinstance(weight_map, dict) or not weight_map:
        problems.append(f"{file}: weight_map must be an object that names tensors; {DOWNLOAD}")
        weight_map = {}
    for name, shard in weight_map.items():
        if not _is_name(name) or not _is_name(shard) or Path(shard).name != shard or "\\" in shard:
            problems.append(f"{file}: {shown(name)}: {shown(shard)} names no file beside the index; {DOWNLOAD}")
        elif not shard.endswith(".safetensors"):
            problems.append(f"{file}: {name}: {shard} is no safetensors file; only these are read")
    if problems:
        raise WeightsError(problems)
    return ShardIndex(weight_map=weight_map, total_size=total)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MOST_NAME and value.isprintable()


def _are_counts(value: Any) -> bool:
    """Whether a value is a list of non-negative integers."""
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)
