"""Stage 3: from a picture, at layer index -1, to its composite and layers, on v5p-128.

The paper's: the condition at layer index -1, at most 20 layers, 400,000 steps of Adam at 1e-5. Ours: a fifth of the
rows repeats stage 2, batch, resolution, EMA.

A step is 32 rows, each on two chips, of 24 pictures of 640 x 640 pixels, conditions included: a sample of 20 layers
or several of fewer, 1,228,800 image tokens. Parameters, EMA and moments take 5.2 GB on each chip.
"""

from configs.released.common import pretraining
from qil_jax.loader.tasks import Task
from qil_jax.mesh import MeshShape
from qil_jax.training.experiment import Experiment
from qil_jax.training.stages.kinds import Stage


def config() -> Experiment:
    """Four of five rows are image-to-layers."""
    return pretraining(
        "stage3_image_to_layers",
        Stage.IMAGE_TO_LAYERS,
        ((Task.IMAGE_TO_LAYERS, 0.8), (Task.TEXT_TO_LAYERS, 0.2)),
        pictures=24,
        steps=400_000,
        mesh=MeshShape(fsdp=32, tensor=2),
    )
