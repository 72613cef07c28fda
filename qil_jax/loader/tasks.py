"""The training tasks, which define the conditions and the targets of a sample (arXiv 2512.15603, 3.3)."""

import dataclasses
from enum import StrEnum

import numpy as np

from qil_jax.errors import QilError


class Task(StrEnum):
    """The tasks of the RGBA-VAE stage and the three diffusion stages."""

    RECONSTRUCTION = "reconstruction"
    TEXT_TO_RGB = "text-to-RGB"
    TEXT_TO_RGBA = "text-to-RGBA"
    TEXT_TO_LAYERS = "text-to-layers"
    IMAGE_TO_LAYERS = "image-to-layers"

    def pictures(self, layers: int) -> int:
        """Number of images of a sample with this number of layers: layers, composite, and the condition if any."""
        return {Task.TEXT_TO_LAYERS: layers + 1, Task.IMAGE_TO_LAYERS: layers + 2}.get(self, 1)

    @property
    def target_kind(self) -> int:
        """Entry of the transformer's addition embedding: 1 for RGB targets, else 0 (docs/specification.md, 4)."""
        return int(self is Task.TEXT_TO_RGB)


class Subject(StrEnum):
    """The image that the task text-to-RGBA generates."""

    FOREGROUND = "foreground"  # all layers but an opaque background, with the record's caption
    LAYER = "layer"  # a random layer but an opaque background, with its name as the caption: needs descriptive names


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The mix of tasks.

    Attributes:
      mix: pairs of a task and its positive weight; the task of a row is drawn with probability weight / sum.
      subject: the image that text-to-RGBA generates.
      flatten: probability, in [0, 1], that an image of the task reconstruction is blended over a random solid colour,
        so that the VAE is trained on opaque images too; 0.3 in AlphaVAE (arXiv 2507.09308).

    Raises:
      QilError: if a weight is not positive, or `flatten` is not in [0, 1].
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
        """Draw a task of the mix with probability proportional to its weight."""
        weights = np.array([weight for _, weight in self.mix])
        return self.mix[int(rng.choice(len(weights), p=weights / weights.sum()))][0]

    def pictures(self, layers: int) -> int:
        """Maximum number of images of a sample with this number of layers, over the tasks of the mix."""
        return max(task.pictures(layers) for task, _ in self.mix)
