"""The vision tower of Qwen2.5-VL, from patches of pictures to the tokens that the language model reads.

The equations are in docs/specification.md, 5 (arXiv 2502.13923, 2.1; transformers `modeling_qwen2_5_vl.py`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from qil_jax.choices import AttentionKind
from qil_jax.errors import shown
from qil_jax.models.attention import attention
from qil_jax.models.axes import Axis, Constrain, unconstrained
from qil_jax.models.config import Blocks, Indexes, Size
from qil_jax.models.layers import RMSNorm, gated, linear
from qil_jax.models.rope import Rotary, rotary_embedding, rotate_half
from qil_jax.models.stack import Fold, scan_blocks, stack_blocks
from qil_jax.options import Number, read_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of the vision tower: `vision_config` of text_encoder/config.json.

    Attributes:
      depth: number of blocks.
      hidden_size: width of the residual stream.
      intermediate_size: feed-forward width.
      num_heads: number of attention heads.
      in_channels: number of colour channels of a picture.
      out_hidden_size: width of the output tokens, which the language model reads.
      patch_size: side of a patch in pixels.
      temporal_patch_size: number of frames of a patch.
      spatial_merge_size: number of patches merged into one token along each side.
      window_size: side in pixels of the windows within which most blocks attend.
      fullatt_block_indexes: blocks that attend to the whole picture.
      rope_theta: base of the rotary embedding's wavelengths; positive.
    """

    depth: Blocks = 32
    hidden_size: Size = 1280
    intermediate_size: Size = 3420
    num_heads: Size = 16
    in_channels: Size = 3
    out_hidden_size: Size = 3584
    patch_size: Size = 14
    temporal_patch_size: Size = 2
    spatial_merge_size: Size = 2
    window_size: Size = 112
    fullatt_block_indexes: Indexes = (7, 15, 23, 31)
    rope_theta: Number = 1e4

    @classmethod
    def fields_of(cls, values: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
        """The fields in a parsed `vision_config`; a line is appended to `problems` for each that is invalid."""
        prefix, rope = "vision_config: ", values.get("rope_parameters") or {}
        if values.get("hidden_act", "silu") != "silu":
            problems.append(f"{prefix}hidden_act = {shown(values['hidden_act'])} is not supported (only 'silu')")
        if not isinstance(rope, Mapping):
            problems.append(f"{prefix}rope_parameters = {shown(rope)}: must be an object")
            rope = {}
        # Older files call the input channels `in_chans`, and only newer ones state the rotary embedding.
        values = {"in_channels": values.get("in_chans", 3), "rope_theta": rope.get("rope_theta", 1e4), **values}
        return read_fields(cls, values, problems, prefix=prefix)

    def problems(self) -> list[str]:
        """A message for each pair of sizes that do not fit each other."""
        found = []
        if self.hidden_size % (4 * self.num_heads):
            found.append(
                f"hidden_size {self.hidden_size} must split into num_heads {self.num_heads} of a width that 4 divides"
            )
        if not self.window_side:
            token = self.patch_size * self.spatial_merge_size
            found.append(f"window_size {self.window_size} is smaller than a token of {token} pixels")
        if self.rope_theta <= 0:
            found.append(f"rope_theta {self.rope_theta} must be positive")
        return [f"vision_config: {problem}" for problem in found]

    @property
    def patch_width(self) -> int:
        """Number of values of a patch: channels, frames, rows, columns (1176 in the release)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def window_side(self) -> int:
        """Number of tokens along each side of a window (4 in the release)."""
        return self.window_size // (self.spatial_merge_size * self.patch_size)


class PatchLayout(NamedTuple):
    """Where each patch lies, and what it attends to.

    Attributes:
      positions: row and column in the picture.
      pictures: segment ids of blocks with full attention: 1, and 0 on padding.
      windows: segment ids of the other blocks: the window's number from 1, and 0 on padding.
    """

    positions: Int[Array, "b n 2"]
    pictures: Int[Array, "b n"]
    windows: Int[Array, "b n"]

    @classmethod
    def of(cls, grids: Int[Array, "b 2"], count: int, config: VisionConfig) -> "PatchLayout":
        """The layout of pictures with `grids` (rows, columns) of patches, padded to `count` of them.

        Patches are in the processor's order: tokens row by row, and within a token its patches row by row.
        """
        side, window = config.spatial_merge_size, config.window_side
        index = jnp.arange(count)
        token, inner = index // side**2, index % side**2
        columns = jnp.maximum(grids[:, 1:] // side, 1)
        row, column = token // columns, token % columns
        positions = jnp.stack([row * side + inner // side, column * side + inner % side], axis=-1)
        pictures = (index < jnp.prod(grids, axis=1, keepdims=True)).astype(jnp.int32)
        windows = 1 + (row // window) * (-(-columns // window)) + column // window
        return cls(positions, pictures, pictures * windows)


class VisionBlock(nnx.Module):
    """Pre-norm attention, then a gated SiLU feed-forward network."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        d, hidden = config.hidden_size, config.intermediate_size
        self.heads = config.num_heads
        self.norm1 = RMSNorm(d)
        self.qkv = linear((d, Axis.EMBED), (3 * d, Axis.HEADS), rngs=rngs)
        self.proj = linear((d, Axis.HEADS), (d, Axis.EMBED), rngs=rngs)
        self.norm2 = RMSNorm(d)
        self.gate = linear((d, Axis.VISION), hidden, rngs=rngs)
        self.up = linear((d, Axis.VISION), hidden, rngs=rngs)
        self.down = linear(hidden, (d, Axis.VISION), rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        rotary: Rotary,
        segments: Int[Array, "b n"],
        *,
        kind: AttentionKind = AttentionKind.XLA_CHUNKED,
        constrain: Constrain = unconstrained,
    ) -> Float[Array, "b n d"]:
        """The residual stream after this block; patches attend within equal segment ids."""
        heads = self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3, self.heads, -1)
        q, k, v = (constrain(y, (Axis.BATCH, None, Axis.HEADS, None)) for y in jnp.moveaxis(heads, 2, 0))
        q, k = rotate_half(q, rotary), rotate_half(k, rotary)
        mixed = attention(q, k, v, segments=(segments, segments), kind=kind)
        x = x + self.proj(mixed.reshape(x.shape))
        return x + gated(self.gate, self.up, self.down, self.norm2(x))


class Merger(nnx.Module):
    """The norm of patches, and two linear maps around an exact GELU on the joined patches of each token."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.joined = config.hidden_size * config.spatial_merge_size**2
        self.norm = RMSNorm(config.hidden_size)
        self.fc_in = linear((self.joined, Axis.EMBED), (self.joined, Axis.MLP), rngs=rngs)
        self.fc_out = linear((self.joined, Axis.MLP), (config.out_hidden_size, Axis.EMBED), rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b m e"]:
        """The picture's tokens, each of spatial_merge_size^2 consecutive patches."""
        joined = self.norm(x).reshape(x.shape[0], -1, self.joined)
        return self.fc_out(jax.nn.gelu(self.fc_in(joined), approximate=False))


class VisionTower(nnx.Module):
    """The tower from patches to tokens, with 676,550,144 parameters in the release."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = linear(config.patch_width, (config.hidden_size, Axis.EMBED), bias=False, rngs=rngs)
        self.blocks = stack_blocks(lambda rngs: VisionBlock(config, rngs=rngs), config.depth, rngs=rngs)
        self.merger = Merger(config, rngs=rngs)

    def __call__(
        self,
        patches: Float[Array, "b n c"],
        grids: Int[Array, "b 2"],
        *,
        kind: AttentionKind = AttentionKind.XLA_CHUNKED,
        constrain: Constrain = unconstrained,
        fold: Fold = scan_blocks,
    ) -> Float[Array, "b m e"]:
        """The tokens of one picture a row, in the parameters' dtype.

        Args:
          patches: patches in the processor's order (see `PatchLayout.of`), padded at the end; n is a multiple of
            spatial_merge_size^2.
          grids: rows and columns of each picture in patches, both multiples of spatial_merge_size; patches beyond
            their product are padding, and (0, 0) is a row of nothing else.
          kind: implementation of attention. The default bounds memory, whatever the size of the pictures.
          constrain: constraint of activations to a mesh.
          fold: function that applies the blocks one after another.

        Returns:
          The n / spatial_merge_size^2 tokens of each row, row by row; those beyond the picture are meaningless.
        """
        layout = PatchLayout.of(grids, patches.shape[1], self.config)
        rotary = self.rotary(layout)
        is_full = jnp.asarray([k in self.config.fullatt_block_indexes for k in range(self.config.depth)])

        def step(block: VisionBlock, x: Array, full: Array) -> Array:
            segments = jnp.where(full, layout.pictures, layout.windows)
            x = block(x, rotary, segments, kind=kind, constrain=constrain)
            return constrain(x, (Axis.BATCH, None, None))

        x = self.patch_embed(patches.astype(self.patch_embed.kernel[...].dtype))
        return self.merger(fold(self.blocks, step, constrain(x, (Axis.BATCH, None, None)), is_full))

    def rotary(self, layout: PatchLayout) -> Rotary:
        """The rotations of all heads: half of the feature pairs by row, half by column."""
        width = self.config.hidden_size // self.config.num_heads
        return rotary_embedding(layout.positions, (width // 2, width // 2), self.config.rope_theta)
