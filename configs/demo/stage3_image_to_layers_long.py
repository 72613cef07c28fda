"""Stage 3 of the demonstration model, third run: 60,000 scenes whose layer order is visible in the picture."""

from configs.demo.diffusion import image_to_layers
from qil_jax.training.experiment import Experiment


def config() -> Experiment:
    """The learning rate falls to 1/50 of its peak; the EMA weights that evaluate best are shipped (docs/demo.md)."""
    return image_to_layers("stage3_image_to_layers_long", steps=12000, final_fraction=0.02)
