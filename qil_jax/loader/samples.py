"""The pictures that one record gives for a task: those that the model sees and those that it has to generate."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, UInt8

from qil_jax.layers.boxed_layer import BoxedLayer
from qil_jax.layers.compositing import composite_8bit, over_colour, over_white
from qil_jax.loader.tasks import Subject, Task, TaskConfig
from qil_jax.records.record import Record

FLATTEN_COLOURS = (0.0, 0.5, 1.0)
"""What each component of a solid background is drawn from (paper.md 1.4)."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """The pictures of one sample, all of one size, RGBA with straight alpha and colour 0 under alpha 0.

    Attributes:
      pictures: in the order of the sequence: targets first, the condition last. Latents, if the source holds those.
      layer_indices: of Layer3D RoPE: composite 0, layers 1.. from the bottom, condition -1.
      targets: how many of the first pictures the model has to give.
      caption: the prompt.
      states, lengths: of a source of latents: states of the prompt and of no prompt, and how many of them count.
    """

    pictures: UInt8[np.ndarray, "p y x 4"] | Float[np.ndarray, "p h w z"]
    layer_indices: tuple[int, ...]
    targets: int
    caption: str
    states: Float[np.ndarray, "2 n e"] | None = None
    lengths: Int[np.ndarray, "2"] | None = None


def make_sample(task: Task, record: Record, config: TaskConfig, rng: np.random.Generator) -> Sample:
    """The sample of a task. The composite is blended from the very layers that are targets, and rounded once."""
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
    """The composite or one of the layers, each as likely."""
    which = int(rng.integers(-1, len(record.layers)))
    return composite_8bit(record.layers, record.size) if which < 0 else _on_canvas(record.layers[which], record.size)


def _subject(record: Record, subject: Subject, rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "y x 4"], str]:
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
