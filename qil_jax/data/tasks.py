"""What a record is used for: which pictures the model sees, and which of them it has to give (paper.md 2 and 3.2)."""

import dataclasses
from enum import StrEnum

import numpy as np
from jaxtyping import Float, Int, UInt8

from qil_jax.data.boxed import BoxedLayer, composite_8bit, over_colour, over_white
from qil_jax.data.records import Record

FLATTEN_COLOURS = (0.0, 0.5, 1.0)
"""What each component of a solid background is drawn from (paper.md 1.4)."""


class Task(StrEnum):
    """The tasks of the four stages."""

    RECONSTRUCTION = "reconstruction"
    TEXT_TO_RGB = "text-to-RGB"
    TEXT_TO_RGBA = "text-to-RGBA"
    TEXT_TO_LAYERS = "text-to-layers"
    IMAGE_TO_LAYERS = "image-to-layers"

    def pictures(self, layers: int) -> int:
        """How many pictures a sample of so many layers has: with the composite, and the condition if there is one."""
        return {Task.TEXT_TO_LAYERS: layers + 1, Task.IMAGE_TO_LAYERS: layers + 2}.get(self, 1)

    @property
    def target_kind(self) -> int:
        """Row of the transformer's addition embedding: 1 for RGB targets, 0 for all others (paper.md 2.5)."""
        return int(self is Task.TEXT_TO_RGB)


class Subject(StrEnum):
    """What a single RGBA picture shows.

    FOREGROUND: all layers but an opaque ground, with the record's caption.
    LAYER: any one layer but an opaque ground, with its name as the caption: for data whose layers have telling names.
    """

    FOREGROUND = "foreground"
    LAYER = "layer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The mix of tasks.

    Attributes:
      mix: task to weight.
      subject: of text-to-RGBA.
      flatten: share of pictures of the task reconstruction that are blended over a random solid colour, so that opaque
        pictures are learnt too (paper.md 1.4).

    Raises:
      ValueError: if a weight is not positive, or `flatten` no share.
    """

    mix: tuple[tuple[Task, float], ...] = ((Task.IMAGE_TO_LAYERS, 1.0),)
    subject: Subject = Subject.FOREGROUND
    flatten: float = 0.3

    def __post_init__(self) -> None:
        if not self.mix or min(weight for _, weight in self.mix) <= 0:
            raise ValueError(f"TaskConfig: the mix {self.mix} needs one task or more, each of a positive weight")
        if not 0 <= self.flatten <= 1:
            raise ValueError(f"TaskConfig: flatten {self.flatten} must lie between 0 and 1")

    def choose(self, chance: np.random.Generator) -> Task:
        """A task of the mix, by weight."""
        weights = np.array([weight for _, weight in self.mix])
        return self.mix[int(chance.choice(len(weights), p=weights / weights.sum()))][0]

    def pictures(self, layers: int) -> int:
        """How many pictures a record of so many layers takes at most."""
        return max(task.pictures(layers) for task, _ in self.mix)


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


def make_sample(task: Task, record: Record, config: TaskConfig, chance: np.random.Generator) -> Sample:
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
        picture, caption = _subject(record, config.subject, chance)
    else:
        picture = _any_picture(record, chance)
        if chance.random() < config.flatten:
            picture = over_colour(picture, chance.choice(FLATTEN_COLOURS, 3).tolist())
    return Sample(pictures=picture[None], layer_indices=(0,), targets=1, caption=caption)


def _any_picture(record: Record, chance: np.random.Generator) -> UInt8[np.ndarray, "y x 4"]:
    """The composite or one of the layers, each as likely."""
    which = int(chance.integers(-1, len(record.layers)))
    return composite_8bit(record.layers, record.size) if which < 0 else _on_canvas(record.layers[which], record.size)


def _subject(record: Record, subject: Subject, chance: np.random.Generator) -> tuple[UInt8[np.ndarray, "y x 4"], str]:
    ground, *others = record.layers
    opaque = ground.pixels.shape[1::-1] == record.size and bool((ground.pixels[..., 3] == 255).all())
    shown = others if opaque and others else record.layers
    if subject is Subject.LAYER:
        layer = shown[int(chance.integers(len(shown)))]
        return _on_canvas(layer, record.size), layer.name
    return composite_8bit(shown, record.size), record.caption


def _on_canvas(layer: BoxedLayer, size: tuple[int, int]) -> UInt8[np.ndarray, "y x 4"]:
    canvas = np.zeros((size[1], size[0], 4), np.uint8)
    canvas[layer.window] = layer.pixels
    return canvas
