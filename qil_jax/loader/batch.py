"""One process's rows of a training step, as arrays of fixed shapes."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from qil_jax.loader.latents import LatentSource
from qil_jax.loader.plan import Shape
from qil_jax.loader.samples import Sample
from qil_jax.loader.tasks import Task
from qil_jax.records.sources import RecordSource

NO_RECORD = -1


TASKS = tuple(Task)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One process's rows of a step.

    A row holds samples one after the other, each [composite, layer 1, ..., layer L, condition], then padding. All
    samples of a row have one task, because the transformer has one noise level and target kind per row.

    Attributes:
      pictures: straight RGBA, or latents of a source of latents; padding is 0.
      layer_indices: of each picture, for Layer3D RoPE; 0 for padding.
      segments: which sample of the row a picture belongs to, counted from 1; 0 is padding, which nothing may see.
      targets: whether a picture counts in the loss. Conditions and padding do not.
      tasks: index in TASKS; target_kinds: the row of the transformer's addition embedding.
      records: number of each sample's record, or NO_RECORD.
      captions: the prompt of each sample, empty where there is none.
      step: counted from 0 over all epochs.
      states, lengths: of a source of latents, for each sample: states of its prompt and of no prompt, and how many.
    """

    pictures: UInt8[np.ndarray, "b p y x 4"] | Float[np.ndarray, "b p h w z"]
    layer_indices: Int[np.ndarray, "b p"]
    segments: Int[np.ndarray, "b p"]
    targets: Bool[np.ndarray, "b p"]
    tasks: Int[np.ndarray, " b"]
    target_kinds: Int[np.ndarray, " b"]
    records: Int[np.ndarray, "b s"]
    captions: tuple[tuple[str, ...], ...]
    step: int
    states: Float[np.ndarray, "b s 2 n e"] | None = None
    lengths: Int[np.ndarray, "b s 2"] | None = None


def _empty(shape: Shape, rows: int, source: RecordSource | LatentSource) -> dict[str, np.ndarray]:
    places = rows, shape.pictures
    arrays = {
        "pictures": np.zeros((*places, shape.height, shape.width, 4), np.uint8),
        "layer_indices": np.zeros(places, np.int32),
        "segments": np.zeros(places, np.int32),
        "targets": np.zeros(places, bool),
        "tasks": np.zeros(rows, np.int32),
        "target_kinds": np.zeros(rows, np.int32),
        "records": np.full((rows, shape.samples), NO_RECORD, np.int64),
    }
    if isinstance(source, LatentSource):
        scale, channels = source.empty["scale"][0], source.empty["latents"]
        arrays["pictures"] = np.zeros((*places, shape.height // scale, shape.width // scale, *channels), np.float32)
        arrays["states"] = np.zeros((rows, shape.samples, 2, *source.empty["states"]), np.float32)
        arrays["lengths"] = np.zeros((rows, shape.samples, 2), np.int32)
    return arrays


def _put(samples: Sequence[Sample | None], row: dict[str, np.ndarray]) -> None:
    """Lay the samples of a row out one after the other, in place."""
    at = 0
    for place, sample in enumerate(samples):
        if sample is None:
            continue
        end = at + len(sample.pictures)
        row["pictures"][at:end] = sample.pictures
        row["layer_indices"][at:end] = sample.layer_indices
        row["segments"][at:end] = place + 1
        row["targets"][at : at + sample.targets] = True
        if sample.states is not None:
            row["states"][place], row["lengths"][place] = sample.states, sample.lengths
        at = end
