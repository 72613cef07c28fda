"""The demonstration model, stage 3: a picture to its layers. First on scenes whose objects are merged by depth."""

from configs.demo.diffusion import image_to_layers
from qil_jax.training.experiment import Experiment


def config() -> Experiment:
    """From stage 2."""
    return image_to_layers("stage3_image_to_layers", steps=2636)
