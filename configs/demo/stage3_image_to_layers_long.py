"""The demonstration model, stage 3 to its end: 60,000 ordered scenes."""

from configs.demo.diffusion import image_to_layers
from qil_jax.training.experiment import Experiment


def config() -> Experiment:
    """The learning rate falls to a fiftieth; the newest EMA weights that evaluate best are shipped (docs/demo.md)."""
    return image_to_layers("stage3_image_to_layers_long", steps=12000, final_fraction=0.02)
