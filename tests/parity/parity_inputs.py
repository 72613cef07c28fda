"""Inputs that several parity tests share: pictures, token layouts, a training batch, requests."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
from checkpoints import VAE
from PIL import Image

from qil_jax.inference.request import Request
from qil_jax.models.rope import LayerIndex
from qil_jax.models.vld_mmdit import TokenLayout
from qil_jax.training.batches import BOTTOM, COMPOSITE, NO_TARGET, UPPER, FlowBatch

EXAMPLE = Path(__file__).parents[2] / "examples" / "chelsea.png"
GRID, LAYERS, WORDS = (2, 3), (0, 1, 2, -1), 7
PER = GRID[0] * GRID[1]


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x[:, :, 0].permute(0, 2, 3, 1).numpy()


def pixels(height: int, width: int, channels: int = 4) -> torch.Tensor:
    return torch.rand(1, channels, 1, height, width, generator=torch.Generator().manual_seed(5)) * 2 - 1


def layered(count: int) -> tuple[int, ...]:
    return (LayerIndex.COMPOSITE, *range(1, count + 1), LayerIndex.CONDITION)


def layout(grid, layers, text_mask) -> TokenLayout:
    return TokenLayout.of(grid, layers, text_mask.numpy().astype(np.int32))


def flow_inputs(config) -> FlowBatch:
    """Two rows of one sample with two layers; the second row's prompt is shorter."""
    random = np.random.default_rng(3)
    words = np.array([[1] * WORDS, [1] * (WORDS - 2) + [0, 0]], np.int32)
    kinds = np.repeat([COMPOSITE, BOTTOM, UPPER, NO_TARGET], PER)
    weights = np.where(kinds == COMPOSITE, 0.5, np.where(kinds == NO_TARGET, 0.0, 1.5)).astype(np.float32)
    return FlowBatch(
        clean=jnp.asarray(random.standard_normal((2, PER * len(LAYERS), config.in_channels)), jnp.float32),
        text=jnp.asarray(random.standard_normal((2, WORDS, config.joint_attention_dim)), jnp.float32),
        layout=TokenLayout.of(GRID, LAYERS, words),
        weights=jnp.asarray(np.stack([weights] * 2)),
        kinds=jnp.asarray(np.stack([kinds] * 2).astype(np.int32)),
        target_kinds=jnp.asarray([0, 1], jnp.int32),
        rows=jnp.arange(2),
        picture_tokens=jnp.full(2, PER, jnp.int32),
    )


def torch_flow_loss(reference, batch: FlowBatch, sigma, noise) -> torch.Tensor:
    """Rectified flow as diffusers' training scripts write it."""
    t = lambda x: torch.from_numpy(np.array(x))
    clean, noise, level = t(batch.clean), t(noise), t(sigma)[:, None, None]
    given = (t(batch.kinds) == NO_TARGET)[..., None]
    tokens = torch.where(given, clean, (1 - level) * clean + level * noise)
    velocity = reference(
        hidden_states=tokens.to(reference.dtype),
        encoder_hidden_states=t(batch.text).to(reference.dtype),
        encoder_hidden_states_mask=t(batch.layout.text_segments).bool(),
        timestep=t(sigma).to(reference.dtype),
        img_shapes=[[(1, *GRID)] * len(LAYERS)] * 2,
        additional_t_cond=t(batch.target_kinds).long(),
        return_dict=False,
    )[0]
    errors = ((velocity.float() - (noise - clean)) ** 2).mean(-1)
    weights = t(batch.weights)
    return (errors * weights).sum() / weights.sum()


def picture(width: int, height: int, *, clear: bool = False) -> Image.Image:
    image = Image.open(EXAMPLE).convert("RGBA").resize((width, height))
    if clear:
        image.putalpha(Image.linear_gradient("L").resize((width, height)))
    return image


def noise(layers: int, height: int, width: int) -> np.ndarray:
    shape = (1, layers + 1, height // 8, width // 8, VAE["z_dim"])
    return np.random.default_rng(layers).standard_normal(shape).astype(np.float32)


PROMPT_60 = "a very long description of a cat, " * 8


def mixed() -> list[Request]:
    return [
        Request(image=picture(300, 210), layers=2, prompt="cat", seed=1),
        Request(image=picture(200, 290), layers=5, prompt=PROMPT_60, seed=2, negative_prompt="blurry"),
    ]
