"""The four stages of training (paper.md 3.2): what each may train on, and what it may start from."""

import dataclasses
from enum import StrEnum

from qil_jax.loader.tasks import Task
from qil_jax.weights.tables.entries import Component


class Stage(StrEnum):
    """The stages in their order; fine-tuning a released checkpoint is the last of them, started from it."""

    RGBA_VAE = "rgba_vae"
    TEXT_TO_RGBA = "stage1_text_to_rgba"
    TEXT_TO_LAYERS = "stage2_text_to_layers"
    IMAGE_TO_LAYERS = "stage3_image_to_layers"

    @property
    def component(self) -> Component:
        """What is trained; all else is frozen."""
        return Component.VAE if self is Stage.RGBA_VAE else Component.TRANSFORMER

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What a sample of the stage may be. Later stages may go on with the tasks of earlier ones."""
        single = (Task.TEXT_TO_RGB, Task.TEXT_TO_RGBA)
        return {
            Stage.RGBA_VAE: (Task.RECONSTRUCTION,),
            Stage.TEXT_TO_RGBA: single,
            Stage.TEXT_TO_LAYERS: (*single, Task.TEXT_TO_LAYERS),
            Stage.IMAGE_TO_LAYERS: (*single, Task.TEXT_TO_LAYERS, Task.IMAGE_TO_LAYERS),
        }[self]

    @property
    def predecessors(self) -> tuple["Stage", ...]:
        """Stages whose component this one may start from, beside checkpoints that no stage of ours wrote."""
        order = [Stage.TEXT_TO_RGBA, Stage.TEXT_TO_LAYERS, Stage.IMAGE_TO_LAYERS]
        if self is Stage.RGBA_VAE:
            return (Stage.RGBA_VAE,)
        place = order.index(self)
        return tuple(order[max(0, place - 1) : place + 1])


class Inputs(StrEnum):
    """Of what batches are made."""

    PICTURES = "pictures"
    LATENTS = "latents"


class Precision(StrEnum):
    """Of activations and of the copy of the parameters that they meet."""

    FP32 = "float32"
    BF16 = "bfloat16"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Checkpoint folders, of either layout, from which a stage takes its parts. A finished run's `checkpoint/` is one.

    Attributes:
      checkpoint: gives every part that is not named here.
      vae: gives the RGBA-VAE.
    """

    checkpoint: str
    vae: str | None = None

    def folder(self, component: Component) -> str:
        """Where a part comes from."""
        return self.vae if component is Component.VAE and self.vae else self.checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """How a folder that a config names is made.

    Attributes:
      command: to call where the config's relative paths begin.
      needs: folders that the command reads.
    """

    folder: str
    command: str
    needs: tuple[str, ...] = ()
