"""Stage 3 of the demonstration model, last run: 50,000 scenes that show the same pictures in many forms."""

from configs.demo.diffusion import image_to_layers
from qil_jax.training.experiment import Experiment


def config() -> Experiment:
    """The run starts from what is shipped of the one before it."""
    return image_to_layers("stage3_image_to_layers_varied", steps=2600, learning_rate=6e-4, final_fraction=0.02)
