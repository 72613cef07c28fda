"""Records whose images and captions have been encoded: what `tools/cache_latents.py` writes and the loader reads.

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
from qil_jax.loader.buckets import Bucket
from qil_jax.loader.config import LoaderConfig
from qil_jax.loader.plan import Shape
from qil_jax.loader.samples import Sample
from qil_jax.loader.tasks import Subject, Task
from qil_jax.records.sources import RecordMetadata

EXTRA = 3
"""Images that are encoded of a record beside its layers."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LatentRecord:
    """An encoded record.

    Attributes:
      latents: of [composite, layer 1, ..., layer L, foreground, composite over white].
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
        """Number of layers."""
        return len(self.latents) - EXTRA


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentIndex:
    """What a folder of latents holds and how it was made.

    Attributes:
      shards: number of records in each shard.
      vae: fingerprint of the VAE, as `weights.fingerprint` gives it.
      text_encoder: fingerprint of the text encoder.
      no_prompt: the prompt whose states stand for none.
      rows: width and height in pixels, number of layers and length of the caption in characters, of each record.
      text: most states of a caption or of `no_prompt`.
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

    def metadata(self) -> RecordMetadata:
        """Sizes, layer counts and caption lengths of all records, from the index."""
        return RecordMetadata.from_rows(np.array(self.index.rows, np.int64).reshape(-1, 4))

    def require(self, config: LoaderConfig, buckets: Sequence[Bucket], limits: Int[np.ndarray, " n"]) -> None:
        """Refuse tasks for which no latents are kept, and other sizes or fewer layers than were encoded.

        Raises:
          QilError: naming what is asked for and cannot be provided.
        """
        mix = [task for task, _ in config.tasks.mix]
        if Task.RECONSTRUCTION in mix or (Task.TEXT_TO_RGBA in mix and config.tasks.subject is Subject.LAYER):
            raise QilError(
                f"{self.folder}: cached latents serve neither the task {Task.RECONSTRUCTION} nor the subject "
                f"{Subject.LAYER}: train from pictures, data.inputs=pictures"
            )
        metadata = self.metadata()
        sizes = np.array([(bucket.width, bucket.height) for bucket in buckets])
        wrong = (sizes != metadata.sizes).any(axis=1) | (limits < metadata.layers)
        if wrong.any():
            index = int(np.argmax(wrong))
            width, height = metadata.sizes[index]
            raise QilError(
                f"{self.name(index)} holds {metadata.layers[index]} layers of {width} x {height} pixels, but the "
                f"loader wants at most {limits[index]} of {sizes[index][0]} x {sizes[index][1]}: give the loader the "
                f"buckets, max_layers and row_tokens that the latents were cached with"
            )

    def require_encoders(self, *, vae: str, text_encoder: str, no_prompt: str, text: int) -> None:
        """Refuse latents and states that differ from what encoding now would give.

        Args:
          vae: fingerprint of the VAE at hand.
          text_encoder: fingerprint of the text encoder at hand.
          no_prompt: the prompt that stands for none.
          text: most states of a prompt; fewer than were kept are cut from them.

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

    def sample(self, index: int, task: Task, *, size: tuple[int, int], limit: int, rng: np.random.Generator) -> Sample:
        """The latents of a task's images, with the states of the caption; nothing is random, `require` saw the rest."""
        del size, limit, rng
        which = int(np.searchsorted(self._ends, index, side="right"))
        at = index - int(self._ends[which - 1] if which else 0)
        shard = _open(self.folder, self.split, which)
        first, end = shard.starts[at : at + 2].tolist()
        text_first, text_end = shard.state_starts[at : at + 2].tolist()
        layers = end - first - EXTRA
        start, count = {
            Task.IMAGE_TO_LAYERS: (0, layers + 1),
            Task.TEXT_TO_LAYERS: (0, layers + 1),
            Task.TEXT_TO_RGBA: (layers + 1, 1),
            Task.TEXT_TO_RGB: (layers + 2, 1),
        }[task]
        latents = shard.latents[first + start : first + start + count].astype(np.float32)
        indices = tuple(range(count))
        if task is Task.IMAGE_TO_LAYERS:
            latents, indices = np.concatenate([latents, latents[:1]]), (*indices, -1)
        text = shard.states[text_first:text_end]
        states = np.zeros((2, self.index.text, text.shape[-1]), np.float32)
        states[0, : len(text)], states[1, : len(shard.no_prompt)] = text, shard.no_prompt
        return Sample(
            pictures=latents,
            layer_indices=indices,
            targets=count,
            caption="",
            states=states,
            lengths=np.array([len(text), len(shard.no_prompt)]),
        )

    def empty(self, shape: Shape, rows: int) -> dict[str, np.ndarray]:
        """Zeros for latents [rows, pictures, h, w, z], states [rows, samples, 2, n, e] and their lengths."""
        shard = _open(self.folder, self.split, 0)
        _, high, _, channels = shard.latents.get_shape()
        scale, width = self.index.rows[0][1] // high, shard.states.get_shape()[-1]
        size = shape.height // scale, shape.width // scale
        return {
            "pictures": np.zeros((rows, shape.pictures, *size, channels), np.float32),
            "states": np.zeros((rows, shape.samples, 2, self.index.text, width), np.float32),
            "lengths": np.zeros((rows, shape.samples, 2), np.int32),
        }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Shard:
    """An open shard: latents [p, h, w, z] and states [n, e] to be sliced, and small arrays that are read.

    Record i has the latents starts[i] to starts[i + 1], and likewise the states.
    """

    latents: Any
    states: Any
    starts: Int[np.ndarray, " r"]
    state_starts: Int[np.ndarray, " r"]
    no_prompt: Float16[np.ndarray, "m e"]


@functools.lru_cache(maxsize=4096)
def _open(folder: Path, split: str, number: int) -> _Shard:
    """A shard, whose large arrays are read slice by slice; it stays open as long as the process lives."""
    shard = safe_open(str(_shard_file(folder, split, number)), "np").__enter__()
    small = {name: shard.get_tensor(name) for name in ("starts", "state_starts", "no_prompt")}
    return _Shard(latents=shard.get_slice("latents"), states=shard.get_slice("states"), **small)


def _shard_file(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}-{number:05d}.safetensors"


def write_shard(
    folder: Path, split: str, number: int, records: Sequence[LatentRecord], no_prompt: Float[np.ndarray, "n e"]
) -> None:
    """Write a shard whole; all its records have one size. States [n, e] of `no_prompt` are kept with it."""
    ends = lambda counts: np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    tensors = {
        "latents": np.concatenate([r.latents for r in records]).astype(np.float16),
        "states": np.concatenate([r.states for r in records]).astype(np.float16),
        "starts": ends([len(r.latents) for r in records]),
        "state_starts": ends([len(r.states) for r in records]),
        "no_prompt": no_prompt.astype(np.float16),
    }
    rows = [(*r.size, r.layers, r.caption) for r in records]
    write_whole(epath.Path(_shard_file(folder, split, number)), save(tensors, {"records": json.dumps(rows)}))


def shard_records(folder: Path, split: str, number: int) -> list[tuple[int, int, int, int]] | None:
    """Width, height, layers and length of the caption of a shard's records; None if there is no such shard."""
    file = _shard_file(folder, split, number)
    if not file.is_file():
        return None
    with safe_open(str(file), "np") as shard:
        return [tuple(row) for row in json.loads(shard.metadata()["records"])]


def write_index(folder: Path, split: str, index: LatentIndex) -> None:
    """Write the index, after all shards: a folder without one is not finished."""
    write_whole(epath.Path(folder) / f"{split}.json", (json.dumps(to_json(index)) + "\n").encode())
