"""VLD-MMDiT: the dual-stream transformer that denoises a variable number of layers at once.

The equations are in docs/specification.md, 4 (arXiv 2512.15603, 3.2; diffusers `transformer_qwenimage.py`).
`Modulation` depends only on the noise level and has a third of the parameters; `Backbone` maps tokens to velocities.
Inference computes the modulation of all steps first and may then free the parameters of `Modulation`.

    sigma [b], target kind [b]  --Modulation-->  ModulationTable
    image tokens, text tokens, their TokenLayout, the table  --Backbone-->  velocity of the image tokens
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from qil_jax.models.attention import JOINT, Attend
from qil_jax.models.axes import Axis, Constrain, unconstrained
from qil_jax.models.config import Blocks, ConfigError, Size, parse_config
from qil_jax.models.layers import Linear, RMSNorm, embedding, layer_norm, linear
from qil_jax.models.rope import (
    LayerIndex,
    Rotary,
    Rotation,
    image_positions,
    rotary_embedding,
    rotate,
    text_offset,
    text_positions,
)
from qil_jax.models.stack import PLAIN, Scan, scan_blocks, stack_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class MMDiTConfig:
    """Keys of the released transformer/config.json.

    Attributes:
      num_layers: number of blocks.
      num_attention_heads: number of heads of each block's joint attention.
      attention_head_dim: width of a head; the sum of `axes_dims_rope`.
      joint_attention_dim: number of features of a text token.
      in_channels: number of features of an image token.
      out_channels: number of channels of the latents; a token's velocity has patch_size^2 as many features.
      patch_size: side of the square of latents that one token covers.
      axes_dims_rope: even numbers of features of a head that are rotated by layer, row and column.
      use_additional_t_cond: whether the kind of target is embedded beside the noise level.
      use_layer3d_rope: whether the condition has layer index -1 (Layer3D RoPE).
    """

    num_layers: Blocks = 60
    num_attention_heads: Size = 24
    attention_head_dim: Size = 128
    joint_attention_dim: Size = 3584
    in_channels: Size = 64
    out_channels: Size = 16
    patch_size: Size = 2
    axes_dims_rope: tuple[Size, Size, Size] = (16, 56, 56)
    use_additional_t_cond: bool = False
    use_layer3d_rope: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = "transformer/config.json") -> "MMDiTConfig":
        """Parse the released JSON.

        Raises:
          ConfigError: for unknown keys, values of wrong types, guidance_embeds or zero_cond_t, or inconsistent
            sizes.
        """
        config = parse_config(
            cls,
            values,
            where=where,
            fixed={"guidance_embeds": False, "zero_cond_t": False},
            ignored=("pooled_projection_dim", "quantization_config"),
        )
        if sum(config.axes_dims_rope) != config.attention_head_dim:
            raise ConfigError(
                f"{where}: axes_dims_rope {config.axes_dims_rope} must add up to "
                f"attention_head_dim {config.attention_head_dim}"
            )
        if any(dim % 2 for dim in config.axes_dims_rope):
            raise ConfigError(
                f"{where}: axes_dims_rope {config.axes_dims_rope} must be even: features are rotated in pairs"
            )
        return config

    @property
    def width(self) -> int:
        """The width of both residual streams (3072 in the release)."""
        return self.num_attention_heads * self.attention_head_dim


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ModulationTable:
    """The modulation of k blocks at m noise levels: the batch, or 1 where all samples share level and target kind.

    The arrays are numpy's on the host, and shapes where a program is compiled only.

    Attributes:
      image, text: shift, scale and gate of the attention, then of the MLP, in this stream of each block.
      out: scale, then shift, of the output norm.
    """

    image: Float[Any, "*steps k m 6 d"]
    text: Float[Any, "*steps k m 6 d"]
    out: Float[Any, "*steps m 2 d"]


class AdaLN(NamedTuple):
    """Modulation of one sub-layer f (adaLN-Zero, arXiv 2212.09748, 3.2): x + gate * f(LN(x) * (1 + scale) + shift)."""

    shift: Float[Array, "m 1 d"]
    scale: Float[Array, "m 1 d"]
    gate: Float[Array, "m 1 d"]

    @classmethod
    def of_block(cls, vectors: Float[Array, "m 6 d"]) -> tuple["AdaLN", "AdaLN"]:
        """The modulations of a block's attention and of its MLP, split from its six vectors."""
        parts = [vectors[:, i, None] for i in range(6)]
        return cls(*parts[:3]), cls(*parts[3:])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Position and segment of every token of a batch; the arrays are numpy's on the host, or shapes.

    Attributes:
      image_positions, text_positions: position (layer, row, column) of each token (docs/specification.md, 3).
      image_segments, text_segments: segment id of each token; tokens attend within equal ids, and 0 is padding.
    """

    image_positions: Int[Any, "b t 3"]
    text_positions: Int[Any, "b s 3"]
    image_segments: Int[Any, "b t"]
    text_segments: Int[Any, "b s"]

    @classmethod
    def of(cls, grid: tuple[int, int], layers: Sequence[int], words: Int[np.ndarray, "b s"]) -> "TokenLayout":
        """The layout, in numpy arrays, of rows that hold one sample each, all with the same grid and layers.

        Args:
          grid: numbers of rows and columns of a picture in tokens.
          layers: layer index of each picture, including the condition.
          words: mask of text tokens in each row: 1 for tokens and 0 for padding.
        """
        rows, targets = len(words), sum(index != LayerIndex.CONDITION for index in layers)
        image = image_positions(grid, tuple(layers))
        text = text_positions(words.shape[1], offset=text_offset(grid, targets=targets))
        return cls(
            image_positions=np.stack([image] * rows),
            text_positions=np.stack([text] * rows),
            image_segments=np.ones((rows, len(image)), np.int32),
            text_segments=words.astype(np.int32),
        )


class Modulation(nnx.Module):
    """The map from noise level and target kind to the modulation of every block: 6.8 B parameters in the release."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs):
        self.config = config
        d = config.width
        self.time_in = linear(SINUSOID, (d, Axis.EMBED), rngs=rngs)
        self.time_out = linear((d, Axis.EMBED), d, rngs=rngs)
        if config.use_additional_t_cond:
            self.addition = embedding(2, d, axes=(None, Axis.EMBED), rngs=rngs)
        make = lambda rngs: linear((d, Axis.EMBED), (6 * d, Axis.MODULATION), rngs=rngs)
        self.image = stack_blocks(make, config.num_layers, rngs=rngs)
        self.text = stack_blocks(make, config.num_layers, rngs=rngs)
        self.out = linear((d, Axis.EMBED), (2 * d, Axis.MODULATION), rngs=rngs)

    def __call__(self, sigma: Float[Array, " b"], target_kind: Int[Array, " b"] | None = None) -> ModulationTable:
        """The modulation table of one noise level per sample.

        Args:
          sigma: noise level of each sample, in [0, 1].
          target_kind: row of the addition embedding for each sample; 0 at inference.

        Raises:
          ValueError: if `target_kind` is given without an addition embedding in the config, or missing with one.
        """
        hidden = jax.nn.silu(self.embed(sigma, target_kind))
        per_block = lambda stacked: _stacked_linear(stacked, hidden)
        return ModulationTable(
            image=per_block(self.image),
            text=per_block(self.text),
            out=self.out(hidden).reshape(hidden.shape[0], 2, -1),
        )

    def embed(self, sigma: Float[Array, " b"], target_kind: Int[Array, " b"] | None = None) -> Float[Array, "b d"]:
        """The embedding of noise level and target kind that all blocks share; the arguments are those of `__call__`.

        Raises:
          ValueError: if `target_kind` is given where the config has no additional condition, or is missing.
        """
        if self.config.use_additional_t_cond != (target_kind is not None):
            raise ValueError("target_kind must be given exactly when the config sets use_additional_t_cond")
        dtype = self.time_in.kernel[...].dtype
        hidden = self.time_out(jax.nn.silu(self.time_in(_sinusoid(sigma).astype(dtype))))
        return hidden if target_kind is None else hidden + self.addition(target_kind)


Heads = Float[Array, "b t n h"]
"""Vectors of length h for each of n heads and t tokens."""


class Stream(nnx.Module):
    """The parameters of one stream (image or text) of a block: attention projections and MLP.

    Attributes:
      rotation: order of the features of queries and keys in the parameters: see `models.halves`.
    """

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs):
        d, heads = config.width, (config.width, Axis.HEADS)
        self.head_dim = config.attention_head_dim
        self.rotation = Rotation.INTERLEAVED
        self.q = linear((d, Axis.EMBED), heads, rngs=rngs)
        self.k = linear((d, Axis.EMBED), heads, rngs=rngs)
        self.v = linear((d, Axis.EMBED), heads, rngs=rngs)
        self.out = linear(heads, (d, Axis.EMBED), rngs=rngs)
        self.q_norm = RMSNorm(self.head_dim)
        self.k_norm = RMSNorm(self.head_dim)
        self.mlp_in = linear((d, Axis.EMBED), (4 * d, Axis.MLP), rngs=rngs)
        self.mlp_out = linear((4 * d, Axis.MLP), (d, Axis.EMBED), rngs=rngs)

    def qkv(self, x: Float[Array, "b t d"], rotary: Rotary) -> tuple[Heads, Heads, Heads]:
        """Normalised and rotated queries and keys, and values."""
        split = lambda y: y.reshape(*y.shape[:-1], -1, self.head_dim)
        q = rotate(self.q_norm(split(self.q(x))), rotary, self.rotation)
        k = rotate(self.k_norm(split(self.k(x))), rotary, self.rotation)
        return q, k, split(self.v(x))

    def mlp(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Two linear maps around a tanh-approximated GELU."""
        return self.mlp_out(jax.nn.gelu(self.mlp_in(x), approximate=True))


class Block(nnx.Module):
    """Joint attention of both streams, then an MLP in each (docs/specification.md, 4)."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs):
        self.image = Stream(config, rngs=rngs)
        self.text = Stream(config, rngs=rngs)

    def __call__(
        self,
        streams: tuple[Float[Array, "b s d"], Float[Array, "b t d"]],
        modulation: tuple[Float[Array, "m 6 d"], Float[Array, "m 6 d"]],
        *,
        rotary: tuple[Rotary, Rotary],
        segments: tuple[Int[Array, "b s"], Int[Array, "b t"]],
        attend: Attend = JOINT,
        constrain: Constrain = unconstrained,
    ) -> tuple[Float[Array, "b s d"], Float[Array, "b t d"]]:
        """Both streams after this block. Pairs are in the order text, image."""
        sides = (self.text, self.image)
        adaln = [AdaLN.of_block(vectors) for vectors in modulation]
        gathered = lambda x: constrain(x, (Axis.BATCH, Axis.TOKENS, None))
        scattered = lambda x: constrain(x, (Axis.BATCH, Axis.RESIDUAL, None))
        heads = [
            side.qkv(gathered(_modulate(layer_norm(x), attn.shift, attn.scale)), angles)
            for side, x, (attn, _), angles in zip(sides, streams, adaln, rotary, strict=True)
        ]
        heads = jax.tree.map(lambda x: constrain(x, (Axis.BATCH, Axis.TOKENS, Axis.HEADS, None)), heads)
        q, k, v = zip(*heads, strict=True)
        outs = []
        for side, x, (attn, mlp), mixed in zip(sides, streams, adaln, attend(q, k, v, segments), strict=True):
            x = x + attn.gate * scattered(side.out(mixed.reshape(*mixed.shape[:2], -1)))
            x = x + mlp.gate * scattered(side.mlp(gathered(_modulate(layer_norm(x), mlp.shift, mlp.scale))))
            outs.append(scattered(x))
        return outs[0], outs[1]


class Backbone(nnx.Module):
    """The blocks and the output layer, from image and text tokens and a modulation table to velocities."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs):
        self.config = config
        d = config.width
        self.image_in = linear(config.in_channels, (d, Axis.EMBED), rngs=rngs)
        self.text_norm = RMSNorm(config.joint_attention_dim)
        self.text_in = linear(config.joint_attention_dim, (d, Axis.EMBED), rngs=rngs)
        self.blocks = stack_blocks(lambda rngs: Block(config, rngs=rngs), config.num_layers, rngs=rngs)
        self.image_out = linear((d, Axis.EMBED), config.patch_size**2 * config.out_channels, rngs=rngs)

    def __call__(
        self,
        image: Float[Array, "b t c"],
        text: Float[Array, "b s e"],
        layout: TokenLayout,
        table: ModulationTable,
        *,
        attend: Attend = JOINT,
        constrain: Constrain = unconstrained,
        scan: Scan = PLAIN,
    ) -> Float[Array, "b t c_out"]:
        """The velocity of every image token; values at conditions and padding are meaningless."""
        axes = self.config.axes_dims_rope
        rotary = (rotary_embedding(layout.text_positions, axes), rotary_embedding(layout.image_positions, axes))
        segments = (jnp.asarray(layout.text_segments), jnp.asarray(layout.image_segments))
        scattered = lambda x: constrain(x, (Axis.BATCH, Axis.RESIDUAL, None))
        streams = (scattered(self.text_in(self.text_norm(text))), scattered(self.image_in(image)))

        def step(block: Block, streams: tuple[Array, Array], modulation: tuple[Array, Array]) -> tuple[Array, Array]:
            return block(streams, modulation, rotary=rotary, segments=segments, attend=attend, constrain=constrain)

        _, x = scan_blocks(self.blocks, step, streams, (table.text, table.image), how=scan)
        scale, shift = table.out[:, 0, None], table.out[:, 1, None]
        return self.image_out(_modulate(layer_norm(x), shift, scale))


class VLDMMDiT(nnx.Module):
    """The complete transformer, with 20,430,407,232 parameters in the release."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.modulation = Modulation(config, rngs=rngs)
        self.backbone = Backbone(config, rngs=rngs)

    def __call__(
        self,
        image: Float[Array, "b t c"],
        text: Float[Array, "b s e"],
        layout: TokenLayout,
        *,
        sigma: Float[Array, " b"],
        target_kind: Int[Array, " b"] | None = None,
        attend: Attend = JOINT,
        constrain: Constrain = unconstrained,
        scan: Scan = PLAIN,
    ) -> Float[Array, "b t c_out"]:
        """Velocities of the image tokens: `Modulation` and `Backbone` in one program."""
        table = self.modulation(sigma, target_kind)
        return self.backbone(image, text, layout, table, attend=attend, constrain=constrain, scan=scan)


SINUSOID = 256
"""Number of features of the noise level's sinusoidal embedding."""


def _sinusoid(sigma: Float[Array, " b"]) -> Float[Array, "b 256"]:
    half = SINUSOID // 2
    # Rounded to fp32 at every step, as the weights were trained: an angle of 1000 rad amplifies each rounding.
    exponents = np.float32(-np.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = 1000.0 * (sigma.astype(jnp.float32)[:, None] * frequencies)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _stacked_linear(stacked: Linear, x: Float[Array, "b d"]) -> Float[Array, "k b 6 d"]:
    assert stacked.bias is not None
    if stacked.scale is not None:  # block by block, so that one kernel at a time is converted to x's dtype
        graph, state = nnx.split(stacked)
        out = jax.lax.map(lambda block: nnx.merge(graph, block)(x), state)
        return out.reshape(*out.shape[:2], 6, -1)
    kernel, wide = stacked.kernel[...], {"precision": stacked.precision, "preferred_element_type": jnp.float32}
    out = jnp.einsum("bd,kde->kbe", x, kernel, **wide)
    if stacked.lora is not None:
        out = out + stacked.lora(x, functools.partial(jnp.matmul, **wide))
    out = (out + stacked.bias[...][:, None]).astype(x.dtype)
    return out.reshape(*out.shape[:2], 6, -1)


def _modulate(x: Float[Array, "b t d"], shift: Float[Array, "m 1 d"], scale: Float[Array, "m 1 d"]) -> Array:
    return x * (1 + scale) + shift
