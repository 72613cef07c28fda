"""Stage 1: Qwen-Image's transformer learns the RGBA-VAE's latents, from text to RGB and RGBA pictures, on v5p-128.

The paper's: both tasks jointly, 500,000 steps of Adam at 1e-5. Ours: equal shares of the tasks, batch, resolution,
EMA.

A step is 64 rows, one on each of 64 chips (v5p-128 counts two cores a chip), of 6 pictures of 640 x 640 pixels and
their prompts: 384 samples, 614,400 image tokens, 196,608 text tokens, and at most 1.5 GB of cached latents and hidden
states. Parameters, EMA and moments take 5.2 GB on each chip.
"""

from configs.released.common import pretraining
from qil_jax.loader.tasks import Task
from qil_jax.mesh import MeshShape
from qil_jax.training.experiment import Experiment
from qil_jax.training.stages.kinds import Stage


def config() -> Experiment:
    """Each of the two tasks is drawn with probability 1/2."""
    return pretraining(
        "stage1_text_to_rgba",
        Stage.TEXT_TO_RGBA,
        ((Task.TEXT_TO_RGB, 0.5), (Task.TEXT_TO_RGBA, 0.5)),
        pictures=6,
        steps=500_000,
        mesh=MeshShape(fsdp=64),
    )
