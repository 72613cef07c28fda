"""A checkpoint compared with the PyTorch reference block by block, on the same activations, in fp32.

Each block reads the reference's output of the one before, so an error stays where it arises. One block is in memory at
a time on either side: the released 41 GB need about 4 GB. Needs torch, diffusers, transformers and accelerate.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from flax import nnx
from jax import Array
from safetensors import safe_open
from transformers import Qwen2_5_VLConfig as TorchTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLTextModel,
)
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from qil_jax.mesh import INFERENCE_RULES, Sharding, single_device_mesh
from qil_jax.models.layers import layer_norm
from qil_jax.models.paths import slashed
from qil_jax.models.quantised import quantise
from qil_jax.models.qwen2_5_vl import TextEncoder
from qil_jax.models.rope import LayerIndex, image_positions, rotary_embedding, text_offset, text_positions
from qil_jax.models.stack import block_at
from qil_jax.models.vision_tower import PatchLayout, VisionTower
from qil_jax.weights import Architecture, Checkpoint, Component, StoredComponent

GRID, PICTURES, WORDS, SIGMA = (4, 6), 3, 9, 0.6
PATCHES = (10, 14)
"""Rows and columns of the vision tower's picture: whole windows and partial ones."""
HEAD_ROWS = 1 << 13
"""Number of rows of the output head that are in memory at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockError:
    """Errors of one block.

    Attributes:
      component: component of the checkpoint to which the block belongs.
      block: name of the block.
      largest: largest absolute error over the largest absolute value of the reference.
      mean: mean absolute error over the mean absolute value of the reference.
    """

    component: Component
    block: str
    largest: float
    mean: float


def compare(checkpoint: Checkpoint, reference: Checkpoint) -> Iterator[BlockError]:
    """Errors of the blocks of all components. `checkpoint` may have either layout, `reference` has the released one."""
    with torch.no_grad():
        yield from compare_vae(checkpoint, reference)
        yield from compare_text_encoder(checkpoint, reference)
        yield from compare_output_head(checkpoint, reference)
        yield from compare_vision_tower(checkpoint, reference)
        yield from compare_transformer(checkpoint, reference)


def compare_vae(checkpoint: Checkpoint, reference: Checkpoint) -> Iterator[BlockError]:
    """Encoder and decoder at 64 x 96 pixels."""
    part = Component.VAE
    with init_empty_weights():
        torch_vae: Any = AutoencoderKLQwenImage.from_config(reference[part].json)
    Tensors(reference[part]).fill(torch_vae.eval(), "")
    vae = checkpoint.load(part, Sharding(single_device_mesh(), INFERENCE_RULES), dtype=jnp.float32)
    flat = lambda x: x[:, :, 0].permute(0, 2, 3, 1)
    pixels = torch.rand(1, vae.config.input_channels, 1, 64, 96, generator=_seed()) * 2 - 1
    posterior = torch_vae.encode(pixels).latent_dist
    yield _row(part, "encoder", vae.encode(_ours(flat(pixels))).mean, flat(posterior.mean))
    picture = torch_vae.decode(posterior.mean).sample
    yield _row(part, "decoder", vae.decode(_ours(flat(posterior.mean))), flat(picture))


def compare_text_encoder(checkpoint: Checkpoint, reference: Checkpoint) -> Iterator[BlockError]:
    """The language model: embedding, every layer, the final norm."""
    part = Component.TEXT_ENCODER
    values = reference[part].json
    torch_config: Any = TorchTextConfig.from_dict(values).text_config
    depth, torch_config.num_hidden_layers, torch_config.vocab_size = torch_config.num_hidden_layers, 1, 8
    torch_config._attn_implementation = "eager"
    with init_empty_weights():
        torch_model = Qwen2_5_VLTextModel(torch_config).eval()
    tensors = Tensors(reference[part])
    config = dataclasses.replace(checkpoint.text_encoder, num_hidden_layers=1)
    model = nnx.eval_shape(lambda: TextEncoder(config, rngs=nnx.Rngs(0))).language
    how = checkpoint[part].architecture.quantisation
    if how is not None:
        quantise(model, how)
    parameters = Parameters(checkpoint[part])

    ids = np.random.default_rng(0).integers(0, config.vocab_size, WORDS)
    parts = [slice(i, i + 1) for i in ids.tolist()]
    embedding = tensors.rows("model.embed_tokens.weight", parts)
    table = parameters.targets["language/embed/embedding"]
    rows = [parameters.source.read(table, (part, slice(0, table.shape[1]))) for part in parts]
    yield _row(part, "embedding", np.concatenate(rows).astype(np.float32), embedding)

    x = embedding[None]
    positions = torch.arange(WORDS)[None, None].expand(3, 1, -1)
    cos_sin = torch_model.rotary_emb(x, positions)
    causal = torch.full((WORDS, WORDS), -torch.inf).triu(1)[None, None]
    rotary = rotary_embedding(jnp.arange(WORDS)[None, :, None], (config.head_dim,), config.rope_theta)
    run = _compiled(lambda layer, x: layer(x, rotary, jnp.ones((1, WORDS), jnp.int32)))
    for k in range(depth):
        tensors.fill(torch_model.layers[0], f"model.layers.{k}.")
        expected = torch_model.layers[0](x, attention_mask=causal, position_embeddings=cos_sin)
        expected = expected[0] if isinstance(expected, tuple) else expected
        layer = parameters.block(model.layers, "language/layers", k)
        yield _row(part, f"layer {k}", run(layer, _ours(x)), expected)
        x = expected
    tensors.fill(torch_model.norm, "model.norm.")
    parameters.fill(model.norm, "language/norm")
    yield _row(part, "norm", model.norm(_ours(x)), torch_model.norm(x))


def compare_output_head(checkpoint: Checkpoint, reference: Checkpoint) -> Iterator[BlockError]:
    """The logits of all tokens."""
    part = Component.TEXT_ENCODER
    tensors, parameters = Tensors(reference[part]), Parameters(checkpoint[part])
    target = parameters.targets["lm_head/kernel"]
    width, count = target.shape
    x = torch.randn(WORDS, width, generator=_seed())
    ours, expected = [], []
    for first in range(0, count, HEAD_ROWS):
        rows = slice(first, min(first + HEAD_ROWS, count))
        expected.append(x @ tensors.rows("lm_head.weight", [rows]).T)
        kernel = parameters.source.read(target, (slice(0, width), rows))
        ours.append(np.asarray(_ours(x) @ jnp.asarray(kernel.astype(np.float32))))
    yield _row(part, "output head", np.concatenate(ours, axis=1), torch.cat(expected, dim=1))


def compare_vision_tower(checkpoint: Checkpoint, reference: Checkpoint) -> Iterator[BlockError]:
    """The vision tower: embedded patches, every block, the merged tokens."""
    part = Component.TEXT_ENCODER
    torch_config: Any = TorchTextConfig.from_dict(reference[part].json).vision_config
    depth, torch_config.depth = torch_config.depth, 1
    torch_config._attn_implementation = "eager"
    with init_empty_weights():
        torch_model = Qwen2_5_VisionTransformerPretrainedModel(torch_config).eval()
    tensors, parameters = Tensors(reference[part]), Parameters(checkpoint[part])
    config = dataclasses.replace(checkpoint.text_encoder.vision, depth=1)
    model = nnx.eval_shape(lambda: VisionTower(config, rngs=nnx.Rngs(0)))

    patches = torch.randn(PATCHES[0] * PATCHES[1], config.patch_width, generator=_seed())
    for name in ("patch_embed", "merger"):
        tensors.fill(getattr(torch_model, name), f"visual.{name}.")
        parameters.fill(getattr(model, name), f"visual/{name}")
    x = torch_model.patch_embed(patches)
    yield _row(part, "patches", model.patch_embed(_ours(patches)), x)

    side, grid = config.spatial_merge_size, torch.tensor([[1, *PATCHES]])
    windows, ends = get_vision_window_index(grid, side, config.window_size, config.patch_size)
    by_window = torch.arange(len(x)).reshape(-1, side**2)[windows].flatten()
    cos, sin = torch_model.rotary_pos_emb(x, get_vision_position_ids(grid, side))
    layout = PatchLayout.of(jnp.asarray([PATCHES]), len(x), config)
    rotary = model.rotary(layout)
    run = _compiled(lambda block, x, segments: block(x, rotary, segments))
    for k in range(depth):
        full = k in torch_config.fullatt_block_indexes
        order, bounds = (torch.arange(len(x)), torch.tensor([0, len(x)])) if full else (by_window, ends)
        tensors.fill(torch_model.blocks[0], f"visual.blocks.{k}.")
        expected = torch.empty_like(x)
        expected[order] = torch_model.blocks[0](x[order], bounds, position_embeddings=(cos[order], sin[order]))
        block = parameters.block(model.blocks, "visual/blocks", k)
        segments = layout.pictures if k in config.fullatt_block_indexes else layout.windows
        yield _row(part, f"vision {k}", run(block, _ours(x)[None], segments)[0], expected)
        x = expected
    yield _row(part, "merger", model.merger(_ours(x)[None])[0], torch_model.merger(x))


def compare_transformer(checkpoint: Checkpoint, reference: Checkpoint) -> Iterator[BlockError]:
    """VLD-MMDiT: the embeddings, every block with its modulation, the output."""
    part = Component.TRANSFORMER
    values = reference[part].json
    with init_empty_weights():
        torch_model: Any = QwenImageTransformer2DModel.from_config({**values, "num_layers": 1})
    tensors = Tensors(reference[part])
    stored = checkpoint[part].json
    depth, model = stored["num_layers"], Architecture(part, {**stored, "num_layers": 1}).abstract()
    config = model.config
    parameters = Parameters(checkpoint[part])

    tokens = PICTURES * GRID[0] * GRID[1]
    image = torch.randn(1, tokens, config.in_channels, generator=_seed())
    text = torch.randn(1, WORDS, config.joint_attention_dim, generator=_seed()) * 4
    sigma = torch.tensor([SIGMA])
    kind = torch.zeros(1, dtype=torch.long) if config.use_additional_t_cond else None
    for name in ("img_in", "txt_norm", "txt_in", "time_text_embed", "norm_out", "proj_out"):
        tensors.fill(getattr(torch_model, name), f"{name}.")
    backbone, modulation = model.backbone, model.modulation
    for name in ("image_in", "text_norm", "text_in", "image_out"):
        parameters.fill(getattr(backbone, name), f"backbone/{name}")
    for name in ("time_in", "time_out", "out", *(["addition"] if kind is not None else [])):
        parameters.fill(getattr(modulation, name), f"modulation/{name}")
    x, y = torch_model.img_in(image), torch_model.txt_in(torch_model.txt_norm(text))
    noise = torch_model.time_text_embed(sigma, x, kind)
    yield _row(part, "image in", backbone.image_in(_ours(image)), x)
    yield _row(part, "text in", backbone.text_in(backbone.text_norm(_ours(text))), y)
    our_kind = None if kind is None else jnp.zeros(1, jnp.int32)
    yield _row(part, "noise level", modulation.embed(jnp.asarray([SIGMA]), our_kind), noise)

    torch_rotary = torch_model.pos_embed([[(1, *GRID)] * PICTURES], max_txt_seq_len=WORDS, device=torch.device("cpu"))
    layers = (LayerIndex.COMPOSITE, 1, LayerIndex.CONDITION if config.use_layer3d_rope else 2)
    places = text_positions(WORDS, offset=text_offset(GRID, targets=2)), image_positions(GRID, layers)
    rotary = tuple(rotary_embedding(jnp.asarray(p)[None], config.axes_dims_rope) for p in places)

    def step(parts: nnx.List, text: Array, image: Array, noise: Array) -> Array:
        block, *mods = parts
        table = tuple(mod(jax.nn.silu(noise)).reshape(1, 6, -1) for mod in mods)
        segments = (jnp.ones(text.shape[:2], jnp.int32), jnp.ones(image.shape[:2], jnp.int32))
        return jnp.concatenate(block((text, image), table, rotary=rotary, segments=segments), axis=1)

    run = _compiled(step)
    for k in range(depth):
        tensors.fill(torch_model.transformer_blocks[0], f"transformer_blocks.{k}.")
        y_next, x_next = torch_model.transformer_blocks[0](x, y, None, noise, torch_rotary)
        block = parameters.block(backbone.blocks, "backbone/blocks", k)
        mods = [parameters.block(getattr(modulation, s), f"modulation/{s}", k) for s in ("text", "image")]
        ours = run(nnx.List([block, *mods]), _ours(y), _ours(x), _ours(noise))
        yield _row(part, f"block {k}", ours, torch.cat([y_next, x_next], dim=1))
        x, y = x_next, y_next
    scale, shift = jnp.split(modulation.out(jax.nn.silu(_ours(noise)))[:, None], 2, axis=-1)
    ours = backbone.image_out(layer_norm(_ours(x)) * (1 + scale) + shift)
    yield _row(part, "image out", ours, torch_model.proj_out(torch_model.norm_out(x, noise)))


class Tensors:
    """Released tensors of one component, read by safetensors into torch modules."""

    def __init__(self, stored: StoredComponent):
        self._files = {released: (stored.tensors[name].file, name) for released, name in stored.names.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        file, stored = self._files[name]
        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(stored).float()

    def rows(self, name: str, parts: Iterable[slice]) -> torch.Tensor:
        """Some rows of a matrix, fp32."""
        file, stored = self._files[name]
        with safe_open(file, framework="pt") as tensors:
            matrix = tensors.get_slice(stored)
            return torch.cat([matrix[part] for part in parts]).float()

    def fill(self, module: torch.nn.Module, prefix: str) -> None:
        """Set all tensors of a module."""
        found = {n.removeprefix(prefix): self[n] for n in self._files if n.startswith(prefix)}
        module.load_state_dict(found, strict=True, assign=True)


class Parameters:
    """Parameters of one component in fp32, read into single modules of this package's model."""

    def __init__(self, stored: StoredComponent):
        self.source, self.targets = stored.source(), stored.targets

    def fill(self, module: nnx.Module, path: str, block: int | None = None) -> None:
        """Set the parameters of the module at `path`; with `block`, those of that block in a stack of depth one."""
        state = nnx.state(module, nnx.Param)
        for inner, parameter in nnx.to_flat_state(state):
            target = self.targets[slashed([path, *inner])]
            index = [slice(0, size) for size in target.shape]
            if block is not None:
                index[0] = slice(block, block + 1)
            parameter.set_value(jnp.asarray(self.source.read(target, tuple(index)).astype(np.float32)))
        nnx.update(module, state)

    def block(self, stack: nnx.Module, path: str, index: int) -> nnx.Module:
        """One block with its parameters, loaded through a stack of depth one."""
        self.fill(stack, path, index)
        return block_at(stack, 0)


def _compiled(call: Callable[..., Array]) -> Callable[..., Array]:
    run = jax.jit(lambda graph, state, *a: call(nnx.merge(graph, state), *a), static_argnums=0)
    return lambda module, *a: run(*nnx.split(module), *a)


def _seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _ours(x: torch.Tensor) -> Array:
    return jnp.asarray(x.numpy())


def _row(component: Component, block: str, ours: Array | np.ndarray, expected: torch.Tensor) -> BlockError:
    a, b = np.asarray(ours, np.float64), expected.double().numpy()
    assert a.shape == b.shape, (block, a.shape, b.shape)
    error = np.abs(a - b)
    return BlockError(
        component=component,
        block=block,
        largest=float(error.max() / np.abs(b).max()),
        mean=float(error.mean() / np.abs(b).mean()),
    )
