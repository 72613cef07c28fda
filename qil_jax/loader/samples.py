"""Samples: the images that one record contributes to a batch for a task, and the sources that provide them."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite_8bit, over_colour, over_white
from qil_jax.layers.grouping import cheapest_merges, merge
from qil_jax.layers.resize import choose_crop, resized
from qil_jax.layers.visibility import visible_pixels
from qil_jax.loader.buckets import Bucket
from qil_jax.loader.config import LoaderConfig
from qil_jax.loader.plan import Order, Shape
from qil_jax.loader.tasks import Subject, Task, TaskConfig
from qil_jax.records.record import Record
from qil_jax.records.sources import RecordMetadata, RecordSource, read

FLATTEN_COLOURS = (0.0, 0.5, 1.0)
"""Values from which each component of a solid background is drawn, as in AlphaVAE (arXiv 2507.09308)."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """The images of one sample, all of one size, RGBA with straight alpha and colour 0 under alpha 0.

    Attributes:
      pictures: images, or their latents, in the order of the sequence: targets first, the condition last.
      layer_indices: index of each image on the layer axis of Layer3D RoPE: composite 0, layers 1.. from the bottom,
        condition -1.
      targets: number of leading images that the model generates.
      caption: prompt of the sample.
      states: hidden states of the prompt and of the empty prompt; None unless latents are cached.
      lengths: number of valid states of either prompt; None unless latents are cached.
    """

    pictures: UInt8[np.ndarray, "p y x 4"] | Float[np.ndarray, "p h w z"]
    layer_indices: tuple[int, ...]
    targets: int
    caption: str
    states: Float[np.ndarray, "2 n e"] | None = None
    lengths: Int[np.ndarray, "2"] | None = None


@runtime_checkable
class SampleSource(Protocol):
    """A source that provides the sample of a record by the record's number."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Location of a record in its source, for messages."""
        ...

    def metadata(self) -> RecordMetadata:
        """Sizes, layer counts and caption lengths of all records."""
        ...

    def require(self, config: LoaderConfig, buckets: Sequence[Bucket], limits: Int[np.ndarray, " n"]) -> None:
        """Check that the source can provide the samples that a config asks for.

        Args:
          config: settings of the loader.
          buckets: bucket of each record.
          limits: maximum number of layers of each record.

        Raises:
          QilError: if the config asks for what cannot be provided, which the message names.
        """
        ...

    def sample(self, index: int, task: Task, *, size: tuple[int, int], limit: int, rng: np.random.Generator) -> Sample:
        """The sample of a record for a task.

        Args:
          index: number of the record.
          task: training task for which the sample is made.
          size: width and height of the images in pixels.
          limit: maximum number of layers; those of a record with more are merged.
          rng: random generator of all random choices.

        Raises:
          RecordError: if the record cannot be read.
        """
        ...

    def empty(self, shape: Shape, rows: int) -> dict[str, Shaped[np.ndarray, "rows ..."]]:
        """Zeros for the images of `rows` rows of a batch, and for further arrays that only this source fills."""
        ...


class RecordSamples:
    """Samples of records that are decoded, cropped and resized when they are asked for."""

    def __init__(self, records: RecordSource, config: LoaderConfig):
        """Store the tasks and the order of a loader's config; crops are random if shuffled, else central."""
        self.records, self.tasks, self.order = records, config.tasks, config.order

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        """Location of a record in its source, for messages."""
        return self.records.name(index)

    def metadata(self) -> RecordMetadata:
        """Sizes, layer counts and caption lengths of all records."""
        return self.records.metadata()

    def require(self, config: LoaderConfig, buckets: Sequence[Bucket], limits: Int[np.ndarray, " n"]) -> None:
        """Check that the config is the one given to the constructor; records can be resized and merged as needed.

        Raises:
          ValueError: if the config differs.
        """
        del buckets, limits
        if (config.tasks, config.order) != (self.tasks, self.order):
            raise ValueError("the loader and its RecordSamples were given different configs")

    def sample(self, index: int, task: Task, *, size: tuple[int, int], limit: int, rng: np.random.Generator) -> Sample:
        """The sample of a record for a task; see `SampleSource.sample`.

        Raises:
          RecordError: if the record cannot be read.
        """
        record = read(self.records, index)
        crop_rng = rng if self.order is Order.SHUFFLED else None
        return make_sample(task, resized_record(record, size, limit, crop_rng), self.tasks, rng)

    def empty(self, shape: Shape, rows: int) -> dict[str, Shaped[np.ndarray, "rows ..."]]:
        """Zeros for the pixels: uint8 [rows, pictures, height, width, 4]."""
        return {"pictures": np.zeros((rows, shape.pictures, shape.height, shape.width, 4), np.uint8)}


def resized_record(
    record: Record, target: tuple[int, int], limit: int, rng: np.random.Generator | None = None
) -> Record:
    """A record cropped and resized to `target` (width, height), its layers merged down to `limit`.

    The crop is random if `rng` is given, else central.
    """
    crop = choose_crop(record.size, target, rng)
    layers = resized(record.layers, record.size, crop=crop, target=target)
    if len(layers) > limit:
        layers = merge(layers, cheapest_merges(visible_pixels(layers, target), limit), target)
    return dataclasses.replace(record, layers=tuple(layers), size=target)


def make_sample(task: Task, record: Record, config: TaskConfig, rng: np.random.Generator) -> Sample:
    """The sample of a resized record; its composite is blended from the very layers that are targets, rounded once."""
    if task in (Task.TEXT_TO_LAYERS, Task.IMAGE_TO_LAYERS):
        whole = composite_8bit(record.layers, record.size)
        pictures = [whole, *(_on_canvas(layer, record.size) for layer in record.layers)]
        targets, indices = len(pictures), tuple(range(len(pictures)))
        if task is Task.IMAGE_TO_LAYERS:
            pictures.append(whole)
            indices = (*indices, -1)
        return Sample(pictures=np.stack(pictures), layer_indices=indices, targets=targets, caption=record.caption)
    caption = record.caption
    if task is Task.TEXT_TO_RGB:
        picture = over_white(composite_8bit(record.layers, record.size))
    elif task is Task.TEXT_TO_RGBA:
        picture, caption = _subject(record, config.subject, rng)
    else:
        picture = _any_picture(record, rng)
        if rng.random() < config.flatten:
            picture = over_colour(picture, rng.choice(FLATTEN_COLOURS, 3).tolist())
    return Sample(pictures=picture[None], layer_indices=(0,), targets=1, caption=caption)


def _any_picture(record: Record, rng: np.random.Generator) -> UInt8[np.ndarray, "y x 4"]:
    """The composite or one of the layers, all with equal probability."""
    which = int(rng.integers(-1, len(record.layers)))
    return composite_8bit(record.layers, record.size) if which < 0 else _on_canvas(record.layers[which], record.size)


def _subject(record: Record, subject: Subject, rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "y x 4"], str]:
    """The image that text-to-RGBA generates, and its caption."""
    ground, *others = record.layers
    opaque = ground.pixels.shape[1::-1] == record.size and bool((ground.pixels[..., 3] == 255).all())
    shown = others if opaque and others else record.layers
    if subject is Subject.LAYER:
        layer = shown[int(rng.integers(len(shown)))]
        return _on_canvas(layer, record.size), layer.name
    return composite_8bit(shown, record.size), record.caption


def _on_canvas(layer: BoxedLayer, size: tuple[int, int]) -> UInt8[np.ndarray, "y x 4"]:
    canvas = np.zeros((size[1], size[0], 4), np.uint8)
    canvas[layer.window] = layer.pixels
    return canvas
