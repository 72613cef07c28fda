"""Cached latents: records whose images and captions are encoded by `qil cache-latents`, for the loader to read.

    FOLDER/SPLIT-00000.safetensors ...   latents of the images and states of the captions of some hundred records each
    FOLDER/SPLIT.json                    written last: number and sizes of the records, fingerprints of the encoders

A shard holds for each of its records, one after the other: the latents [composite, layer 1, ..., layer L, foreground,
composite over white], and the hidden states of its caption. Both are float16.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Float16, Int
from safetensors import safe_open
from safetensors.numpy import save

from qil_jax.errors import QilError
from qil_jax.files import write_whole
from qil_jax.identity import to_json
from qil_jax.options import fitted
from qil_jax.programs import called
from qil_jax.strict_json import read_json

EXTRA = 3
"""Number of images that are encoded for a record besides its layers."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LatentRecord:
    """An encoded record.

    Attributes:
      latents: latents of the images [composite, layer 1, ..., layer L, foreground, composite over white].
      states: hidden states of the caption.
      size: width and height of the images in pixels.
      caption: length of the caption in characters.
    """

    latents: Float[np.ndarray, "p h w z"]
    states: Float[np.ndarray, "n e"]
    size: tuple[int, int]
    caption: int

    @property
    def layers(self) -> int:
        """Number of layers of the record."""
        return len(self.latents) - EXTRA


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentIndex:
    """Index of one split of a folder of latents: its records and the encoders that produced it.

    Attributes:
      shards: number of records in each shard.
      vae: fingerprint of the VAE, as `weights.fingerprint` gives it.
      text_encoder: fingerprint of the text encoder.
      no_prompt: prompt whose hidden states replace those of a missing caption.
      rows: width and height in pixels, number of layers and length of the caption in characters, of each record.
      text: maximum number of states of a caption or of `no_prompt`.
    """

    shards: tuple[int, ...]
    vae: str
    text_encoder: str
    no_prompt: str
    rows: tuple[tuple[int, int, int, int], ...]
    text: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """An open shard: latents [p, h, w, z] and states [n, e], read by slices, and small arrays held in memory.

    Record i has the latents starts[i] to starts[i + 1] and the states state_starts[i] to state_starts[i + 1].
    """

    latents: Any
    states: Any
    starts: Int[np.ndarray, " r"]
    state_starts: Int[np.ndarray, " r"]
    no_prompt: Float16[np.ndarray, "m e"]


@functools.lru_cache(maxsize=4096)
def open_shard(folder: Path, split: str, number: int) -> Shard:
    """A shard, whose large arrays are read slice by slice; it stays open as long as the process lives."""
    shard = safe_open(str(_shard_file(folder, split, number)), "np").__enter__()
    small = {name: shard.get_tensor(name) for name in ("starts", "state_starts", "no_prompt")}
    return Shard(latents=shard.get_slice("latents"), states=shard.get_slice("states"), **small)


def _shard_file(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}-{number:05d}.safetensors"


def write_shard(
    folder: Path, split: str, number: int, records: Sequence[LatentRecord], no_prompt: Float[np.ndarray, "n e"]
) -> None:
    """Write a shard atomically; all its records have one size. States [n, e] of `no_prompt` are kept with it."""
    tensors = {
        "latents": np.concatenate([r.latents for r in records]).astype(np.float16),
        "states": np.concatenate([r.states for r in records]).astype(np.float16),
        "starts": _starts([len(r.latents) for r in records]),
        "state_starts": _starts([len(r.states) for r in records]),
        "no_prompt": no_prompt.astype(np.float16),
    }
    rows = [(*r.size, r.layers, r.caption) for r in records]
    write_whole(epath.Path(_shard_file(folder, split, number)), save(tensors, {"records": json.dumps(rows)}))


def _starts(counts: Sequence[int]) -> Int[np.ndarray, " r"]:
    """Offsets at which consecutive segments of these lengths start, and the offset at which the last one ends."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def shard_records(folder: Path, split: str, number: int) -> list[tuple[int, int, int, int]] | None:
    """Width, height, layers and length of the caption of a shard's records; None if there is no such shard."""
    file = _shard_file(folder, split, number)
    if not file.is_file():
        return None
    with safe_open(str(file), "np") as shard:
        return [tuple(row) for row in json.loads(shard.metadata()["records"])]


def write_index(folder: Path, split: str, index: LatentIndex) -> None:
    """Write the index of a split after all its shards; a split without one is incomplete."""
    write_whole(epath.Path(folder) / f"{split}.json", (json.dumps(to_json(index)) + "\n").encode())


def read_index(folder: Path, split: str) -> LatentIndex:
    """The index of a split.

    Raises:
      QilError: if there is none, because encoding is not finished, or it holds something else.
    """
    file = folder / f"{split}.json"
    if not file.is_file():
        raise QilError(f"{file}: missing: run {called('cache-latents')} to the end for the split '{split}'")
    fix = f"remove it, and run {called('cache-latents')} again"
    return fitted(LatentIndex, read_json(file, fix=fix), where=str(file), fix=fix)
