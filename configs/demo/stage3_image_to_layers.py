"""Stage 3 of the demonstration model, first run: from a picture to its layers, with objects merged by depth."""

from configs.demo.diffusion import image_to_layers
from qil_jax.training.experiment import Experiment


def config() -> Experiment:
    """The run starts from the checkpoint of stage 2."""
    return image_to_layers("stage3_image_to_layers", steps=2636)
