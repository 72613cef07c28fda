"""The four stages of training (arXiv 2512.15603, section 3.3), with their tasks and initial checkpoints."""

from enum import StrEnum

from qil_jax.loader.tasks import Task
from qil_jax.weights.tables.entries import Component


class Stage(StrEnum):
    """The stages in order of training. Fine-tuning of a released checkpoint is the last stage, started from it."""

    RGBA_VAE = "rgba_vae"
    TEXT_TO_RGBA = "stage1_text_to_rgba"
    TEXT_TO_LAYERS = "stage2_text_to_layers"
    IMAGE_TO_LAYERS = "stage3_image_to_layers"

    @property
    def component(self) -> Component:
        """The trained component; all others are frozen."""
        return Component.VAE if self is Stage.RGBA_VAE else Component.TRANSFORMER

    @property
    def reads(self) -> tuple[Component, ...]:
        """The components that a run of the stage reads from its initial checkpoint."""
        return (Component.VAE,) if self is Stage.RGBA_VAE else tuple(Component)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The possible tasks of a sample. Later stages may keep the tasks of earlier ones."""
        single = (Task.TEXT_TO_RGB, Task.TEXT_TO_RGBA)
        return {
            Stage.RGBA_VAE: (Task.RECONSTRUCTION,),
            Stage.TEXT_TO_RGBA: single,
            Stage.TEXT_TO_LAYERS: (*single, Task.TEXT_TO_LAYERS),
            Stage.IMAGE_TO_LAYERS: (*single, Task.TEXT_TO_LAYERS, Task.IMAGE_TO_LAYERS),
        }[self]

    @property
    def predecessors(self) -> tuple["Stage", ...]:
        """The stages from whose checkpoints this one may start, besides checkpoints that no stage wrote.

        A checkpoint of the RGBA-VAE has a transformer that no stage trained, unless its decoder alone was trained on.
        """
        order = [Stage.TEXT_TO_RGBA, Stage.TEXT_TO_LAYERS, Stage.IMAGE_TO_LAYERS]
        if self is Stage.RGBA_VAE:
            return (Stage.RGBA_VAE,)
        place = order.index(self)
        return (*order[max(0, place - 1) : place + 1], Stage.RGBA_VAE)
