"""Stage 3 of the demonstration model at 128 pixels: 15,000 scenes, three quarters of them on photographs."""

from configs.demo.diffusion import image_to_layers_128
from qil_jax.training.experiment import Experiment


def config() -> Experiment:
    """The run starts from the run on designs."""
    return image_to_layers_128(
        "stage3_image_to_layers_photo", steps=2000, learning_rate=7.5e-4, adamw_learning_rate=2e-4
    )
