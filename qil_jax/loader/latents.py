"""Records whose pictures and captions have been encoded: what `tools/cache_latents.py` writes and the loader reads.

    FOLDER/SPLIT-00000.safetensors ...   latents of the pictures and states of the captions of some hundred records each
    FOLDER/SPLIT.json                    written last: how many there are, of which shape, and what made them

A shard holds for each of its records, one after the other: the latents [composite, layer 1, ..., layer L, foreground,
composite over white], and the states of its caption. All is float16.
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
from qil_jax.loader.samples import Sample
from qil_jax.loader.tasks import Task
from qil_jax.records.sources import Facts

EXTRA = 3
"""Pictures of a record beside its layers."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LatentRecord:
    """A record, encoded. `size` is that of its pictures in pixels, `caption` the characters of its caption."""

    latents: Float[np.ndarray, "p h w z"]
    states: Float[np.ndarray, "n e"]
    size: tuple[int, int]
    caption: int

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return len(self.latents) - EXTRA


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentIndex:
    """What is known of a folder of latents.

    Attributes:
      shards: number of records in each.
      vae, text_encoder: fingerprints of what encoded, as `weights.fingerprint` gives them.
      no_prompt: the prompt whose states stand for none.
      rows: width, height, layers and length of caption of each record.
      text: most states that a caption or `no_prompt` has.
    """

    shards: tuple[int, ...]
    vae: str
    text_encoder: str
    no_prompt: str
    rows: tuple[tuple[int, int, int, int], ...]
    text: int


def open_latents(folder: str | Path, split: str) -> "LatentSource":
    """The cached records of a split.

    Raises:
      QilError: if the folder holds none, or a build of them that is not finished.
    """
    file = Path(folder) / f"{split}.json"
    if not file.is_file():
        raise QilError(f"{file}: missing: run tools/cache_latents.py to the end for the split '{split}'")
    values = json.loads(file.read_text())
    tuples = {"shards": tuple(values["shards"]), "rows": tuple(map(tuple, values["rows"]))}
    return LatentSource(Path(folder), split, LatentIndex(**{**values, **tuples}))


class LatentSource:
    """Samples of cached latents by number."""

    def __init__(self, folder: Path, split: str, index: LatentIndex):
        self.folder, self.split, self.index = folder, split, index
        self._ends = np.cumsum(index.shards)

    def __len__(self) -> int:
        return len(self.index.rows)

    def name(self, index: int) -> str:
        """Split and number in the folder."""
        return f"{self.folder}: {self.split}[{index}]"

    def facts(self) -> Facts:
        """Of all records."""
        return Facts.from_rows(np.array(self.index.rows, np.int64).reshape(-1, 4))

    @functools.cached_property
    def empty(self) -> dict[str, tuple[int, ...]]:
        """Shapes of a picture's latents and of a prompt's states."""
        with safe_open(str(_shard(self.folder, self.split, 0)), "np") as shard:
            z = shard.get_slice("latents").get_shape()[-1]
            e = shard.get_slice("states").get_shape()[-1]
            high = shard.get_slice("latents").get_shape()[1]
        scale = self.index.rows[0][1] // high
        return {"scale": (scale,), "latents": (z,), "states": (self.index.text, e)}

    def require(self, *, vae: str, text_encoder: str, no_prompt: str, text: int) -> None:
        """Refuse latents and states that are not what encoding now would give.

        Args:
          vae, text_encoder: fingerprints of those at hand.
          no_prompt: the prompt that stands for none.
          text: states that a prompt may have; fewer than were kept are cut from them.

        Raises:
          QilError: naming what differs.
        """
        for part, found, wanted in (
            ("VAE", self.index.vae, vae),
            ("text encoder", self.index.text_encoder, text_encoder),
        ):
            if found != wanted:
                raise QilError(
                    f"{self.folder}: was encoded by another {part} ({found}) than the one the run starts from "
                    f"({wanted}): run tools/cache_latents.py again with this one"
                )
        if self.index.no_prompt != no_prompt:
            raise QilError(
                f"{self.folder}: was encoded with no_prompt {self.index.no_prompt!r}, but loss.no_prompt is "
                f"{no_prompt!r}: set it alike, or run tools/cache_latents.py again"
            )
        if self.index.text < text:
            raise QilError(
                f"{self.folder}: keeps {self.index.text} tokens of a prompt, but data.text_tokens is {text}: lower it, "
                f"or run tools/cache_latents.py again"
            )

    def sample(self, index: int, task: Task) -> Sample:
        """The latents of a task's pictures, with the states of the caption."""
        which = int(np.searchsorted(self._ends, index, side="right"))
        at = index - int(self._ends[which - 1] if which else 0)
        shard = _open(self.folder, self.split, which)
        first, end = shard.starts[at : at + 2].tolist()
        latents = shard.latents[first:end]
        text = shard.states[slice(*shard.state_starts[at : at + 2].tolist())]
        layers = end - first - EXTRA
        chosen, indices = {
            Task.IMAGE_TO_LAYERS: ([*range(layers + 1), 0], (*range(layers + 1), -1)),
            Task.TEXT_TO_LAYERS: ([*range(layers + 1)], tuple(range(layers + 1))),
            Task.TEXT_TO_RGBA: ([layers + 1], (0,)),
            Task.TEXT_TO_RGB: ([layers + 2], (0,)),
        }[task]
        targets = len(indices) - (task is Task.IMAGE_TO_LAYERS)
        states = np.zeros((2, *self.empty["states"]), np.float32)
        states[0, : len(text)], states[1, : len(shard.no_prompt)] = text, shard.no_prompt
        return Sample(
            pictures=latents[chosen].astype(np.float32),
            layer_indices=indices,
            targets=targets,
            caption="",
            states=states,
            lengths=np.array([len(text), len(shard.no_prompt)]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Shard:
    latents: Float16[np.ndarray, "p h w z"]
    states: Float16[np.ndarray, "n e"]
    starts: Int[np.ndarray, " r"]
    state_starts: Int[np.ndarray, " r"]
    no_prompt: Float16[np.ndarray, "m e"]


@functools.lru_cache(maxsize=4096)
def _open(folder: Path, split: str, number: int) -> _Shard:
    """A shard, its large arrays mapped and not read."""
    file = _shard(folder, split, number)
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    types = {"F16": np.float16, "I64": np.int64}
    arrays = {
        name: np.memmap(file, types[entry["dtype"]], "r", 8 + size + entry["data_offsets"][0], tuple(entry["shape"]))
        for name, entry in header.items()
    }
    return _Shard(**arrays)


def _shard(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}-{number:05d}.safetensors"


def write_shard(
    folder: Path, split: str, number: int, records: Sequence[LatentRecord], no_prompt: Float[np.ndarray, "n e"]
) -> None:
    """Write a shard whole; all its records have one size."""
    ends = lambda counts: np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)  # noqa: E731
    tensors = {
        "latents": np.concatenate([r.latents for r in records]).astype(np.float16),
        "states": np.concatenate([r.states for r in records]).astype(np.float16),
        "starts": ends([len(r.latents) for r in records]),
        "state_starts": ends([len(r.states) for r in records]),
        "no_prompt": no_prompt.astype(np.float16),
    }
    facts = [(*r.size, r.layers, r.caption) for r in records]
    write_whole(epath.Path(_shard(folder, split, number)), save(tensors, {"facts": json.dumps(facts)}))


def shard_facts(folder: Path, split: str, number: int) -> list[tuple[int, int, int, int]] | None:
    """Width, height, layers and length of caption of a shard's records; None if it is not there."""
    file = _shard(folder, split, number)
    if not file.is_file():
        return None
    with safe_open(str(file), "np") as shard:
        return [tuple(row) for row in json.loads(shard.metadata()["facts"])]


def write_index(folder: Path, split: str, index: LatentIndex) -> None:
    """Say that all shards are there."""
    write_whole(epath.Path(folder) / f"{split}.json", (json.dumps(_plain(index)) + "\n").encode())


def _plain(index: LatentIndex) -> dict[str, Any]:
    return {field.name: getattr(index, field.name) for field in dataclasses.fields(index)}
