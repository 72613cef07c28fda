"""What a record is used for: which pictures the model sees, and which of them it has to give (paper.md 2 and 3.2)."""

import dataclasses
from enum import StrEnum

import numpy as np

from qil_jax.errors import QilError


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
      QilError: if a weight is not positive, or `flatten` no share.
    """

    mix: tuple[tuple[Task, float], ...] = ((Task.IMAGE_TO_LAYERS, 1.0),)
    subject: Subject = Subject.FOREGROUND
    flatten: float = 0.3

    def __post_init__(self) -> None:
        if not self.mix or min(weight for _, weight in self.mix) <= 0:
            raise QilError(f"TaskConfig: the mix {self.mix} needs one task or more, each of a positive weight")
        if not 0 <= self.flatten <= 1:
            raise QilError(f"TaskConfig: flatten {self.flatten} must lie between 0 and 1")

    def choose(self, rng: np.random.Generator) -> Task:
        """A task of the mix, by weight."""
        weights = np.array([weight for _, weight in self.mix])
        return self.mix[int(rng.choice(len(weights), p=weights / weights.sum()))][0]

    def pictures(self, layers: int) -> int:
        """How many pictures a record of so many layers takes at most."""
        return max(task.pictures(layers) for task, _ in self.mix)
