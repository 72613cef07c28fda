"""Stage 3 of the demonstration model at 128 pixels: 30,000 scenes of clip art, emoji, shapes and text with shadows."""

from configs.demo.diffusion import image_to_layers_128
from qil_jax.training.experiment import Experiment


def config() -> Experiment:
    """The run starts from what ships, with the decoder that was trained on at 128 pixels."""
    return image_to_layers_128(
        "stage3_image_to_layers_design", steps=4000, learning_rate=1.5e-3, adamw_learning_rate=4e-4
    )
