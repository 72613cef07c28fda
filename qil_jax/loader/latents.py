"""Source of samples whose images and captions are cached in encoded form (`latent_files.py`)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped

from qil_jax.errors import QilError
from qil_jax.loader.buckets import Bucket
from qil_jax.loader.config import LoaderConfig
from qil_jax.loader.latent_files import EXTRA, LatentIndex, open_shard, read_index
from qil_jax.loader.plan import Shape
from qil_jax.loader.samples import Sample
from qil_jax.loader.tasks import Subject, Task
from qil_jax.programs import called
from qil_jax.records.sources import RecordMetadata


def open_latents(folder: str | Path, split: str) -> "LatentSource":
    """The cached records of a split.

    Raises:
      QilError: if the folder holds none, or encoding is not finished.
    """
    return LatentSource(Path(folder), split, read_index(Path(folder), split))


class LatentSource:
    """Samples of cached latents by number."""

    def __init__(self, folder: Path, split: str, index: LatentIndex):
        self.folder, self.split, self.index = folder, split, index
        self._ends = np.cumsum(index.shards)

    def __len__(self) -> int:
        return len(self.index.rows)

    def name(self, index: int) -> str:
        """Name of a record for messages: its split and number in the folder."""
        return f"{self.folder}: {self.split}[{index}]"

    def metadata(self) -> RecordMetadata:
        """Sizes, layer counts and caption lengths of all records, from the index."""
        return RecordMetadata.from_rows(np.array(self.index.rows, np.int64).reshape(-1, 4))

    def require(self, config: LoaderConfig, buckets: Sequence[Bucket], limits: Int[np.ndarray, " n"]) -> None:
        """Refuse tasks for which no latents are kept, and other sizes or fewer layers than were encoded.

        Raises:
          QilError: if the config asks for what cannot be provided, which the message names.
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
          no_prompt: prompt that replaces a missing caption.
          text: maximum number of states of a prompt; longer cached states are truncated.

        Raises:
          QilError: if a fingerprint, prompt or length differs, which the message names.
        """
        for part, found, wanted in (
            ("VAE", self.index.vae, vae),
            ("text encoder", self.index.text_encoder, text_encoder),
        ):
            if found != wanted:
                raise QilError(
                    f"{self.folder}: was encoded by another {part} ({found}) than the one the run starts from "
                    f"({wanted}): run {called('cache-latents')} again with this one"
                )
        if self.index.no_prompt != no_prompt:
            raise QilError(
                f"{self.folder}: was encoded with no_prompt {self.index.no_prompt!r}, but loss.no_prompt is "
                f"{no_prompt!r}: set it alike, or run {called('cache-latents')} again"
            )
        if self.index.text < text:
            raise QilError(
                f"{self.folder}: keeps {self.index.text} tokens of a prompt, but data.text_tokens is {text}: lower it, "
                f"or run {called('cache-latents')} again"
            )

    def sample(self, index: int, task: Task, *, size: tuple[int, int], limit: int, rng: np.random.Generator) -> Sample:
        """The cached latents of a task's images and the states of the caption. The result is deterministic."""
        del size, limit, rng
        which = int(np.searchsorted(self._ends, index, side="right"))
        at = index - int(self._ends[which - 1] if which else 0)
        shard = open_shard(self.folder, self.split, which)
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

    def empty(self, shape: Shape, rows: int) -> dict[str, Shaped[np.ndarray, "rows ..."]]:
        """Zeros for latents [rows, pictures, h, w, z], states [rows, samples, 2, n, e] and their lengths."""
        shard = open_shard(self.folder, self.split, 0)
        _, high, _, channels = shard.latents.get_shape()
        scale, width = self.index.rows[0][1] // high, shard.states.get_shape()[-1]
        size = shape.height // scale, shape.width // scale
        return {
            "pictures": np.zeros((rows, shape.pictures, *size, channels), np.float32),
            "states": np.zeros((rows, shape.samples, 2, self.index.text, width), np.float32),
            "lengths": np.zeros((rows, shape.samples, 2), np.int32),
        }
