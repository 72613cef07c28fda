"""A block of the released transformer's width against diffusers: in fp32, in bf16, and quantised.

All have the same weights, rounded to bf16, and the same inputs, which bf16 holds exactly.
"""

import gc
import shutil
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkpoints import build_tiny_checkpoint, tiny_transformer
from flax import nnx
from parity_inputs import layered, layout
from reference import error, mean_error, relative

from qil_jax.mesh import INFERENCE_RULES, Sharding, single_device_mesh
from qil_jax.models.quantised import Quantisation
from qil_jax.weights import Checkpoint, Component
from qil_jax.weights.quantise import quantise_checkpoint

pytestmark = pytest.mark.full

torch.set_grad_enabled(False)
RELEASED = {"num_layers": 1, "num_attention_heads": 24, "attention_head_dim": 128, "axes_dims_rope": (16, 56, 56)}
GRID, LAYERS, WORDS, SIGMA, KIND = (3, 4), layered(2), 6, [0.7, 0.31], [0, 1]
BLOCK_BYTES = 2 * (4 + 8 + 6) * 3072**2
"""Bytes of the quantised kernels of the block's two streams and their modulation."""
FILE = "transformer/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Wide:
    """A checkpoint, two samples at unlike noise levels, one with padded text, and diffusers' velocities of them."""

    folder: Path
    x: torch.Tensor
    text: torch.Tensor
    mask: torch.Tensor
    exact: torch.Tensor
    in_bf16: torch.Tensor

    def found(self, folder: Path, dtype: jnp.dtype) -> jax.Array:
        """Our velocities by a checkpoint's transformer."""
        sharding = Sharding(single_device_mesh(), INFERENCE_RULES)
        graph, state = nnx.split(Checkpoint(folder).load(Component.TRANSFORMER, sharding, dtype=dtype))
        run = jax.jit(lambda state, *a: nnx.merge(graph, state)(*a[:3], sigma=a[3], target_kind=a[4]))
        inputs = [jnp.asarray(array.float().numpy()).astype(dtype) for array in (self.x, self.text)]
        sigma = jnp.asarray(torch.tensor(SIGMA).bfloat16().float().numpy())
        return run(state, *inputs, layout(GRID, LAYERS, self.mask), sigma, jnp.asarray(KIND))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A block, saved in bf16, and its velocities.

    Weights have a standard deviation of one over the root of their inputs (0.018 in most maps), and the embedding of
    the target kind one of 0.02, with which shifts, scales and gates have 0.23.
    """
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    folder.mkdir()
    build_tiny_checkpoint(folder)
    shutil.rmtree(folder / "transformer")
    reference = tiny_transformer(**RELEASED)
    reference.time_text_embed.addition_t_embedding.weight *= 0.02
    reference.to(torch.bfloat16).save_pretrained(folder / "transformer")
    random = torch.Generator().manual_seed(11)
    x = torch.randn(2, len(LAYERS) * GRID[0] * GRID[1], reference.config.in_channels, generator=random).bfloat16()
    text = torch.randn(2, WORDS, reference.config.joint_attention_dim, generator=random).bfloat16()
    mask = torch.ones(2, WORDS, dtype=torch.bool)
    mask[1, WORDS - 2 :] = False

    def velocity(dtype: torch.dtype) -> torch.Tensor:
        return reference.to(dtype)(
            hidden_states=x.to(dtype),
            encoder_hidden_states=text.to(dtype),
            encoder_hidden_states_mask=mask,
            timestep=torch.tensor(SIGMA).bfloat16().to(dtype),
            img_shapes=[[(1, *GRID)] * len(LAYERS)] * 2,
            additional_t_cond=torch.tensor(KIND),
            return_dict=False,
        )[0].float()

    theirs = velocity(torch.bfloat16)
    exact = velocity(torch.float32)
    del reference
    gc.collect()
    yield Wide(folder, x, text, mask, exact, theirs)
    shutil.rmtree(folder.parent)


def test_fp32(wide: Wide):
    assert error(wide.found(wide.folder, jnp.float32), wide.exact) <= 5e-5


def test_bf16_is_no_further_off_than_that_of_diffusers(wide: Wide):
    found = wide.found(wide.folder, jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    assert 0 < mean_error(found, wide.exact) <= 1.2 * mean_error(wide.in_bf16, wide.exact)


@pytest.mark.parametrize("how", [Quantisation.INT8, pytest.param(Quantisation.FP8, marks=pytest.mark.slow)])
def test_quantised(how, wide: Wide, tmp_path):
    folder = tmp_path / "quantised"
    quantise_checkpoint(wide.folder, folder, how, components=[Component.TRANSFORMER])
    before, after = ((each / FILE).stat().st_size for each in (wide.folder, folder))
    assert 0.99 * BLOCK_BYTES < before - after < BLOCK_BYTES, "one byte of two is saved, but each row has a scale"
    sharding = Sharding(single_device_mesh(), INFERENCE_RULES)
    stored = jax.tree.leaves(nnx.state(Checkpoint(folder).load(Component.TRANSFORMER, sharding, dtype=jnp.float32)))
    assert sum(array.nbytes for array in stored if array.dtype == how.dtype) == BLOCK_BYTES
    difference = relative(np.asarray(wide.found(folder, jnp.float32)), wide.exact)
    print(f"velocity, {how}: {difference:.2%}; {before / 1e6:.1f} MB -> {after / 1e6:.1f} MB")
    assert 0.0005 < difference <= 0.02
