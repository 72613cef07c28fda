"""Qwen2.5-VL: its language model as text encoder, and the whole of it, which describes pictures.

The equations are in docs/specification.md, 5. Prompts need the language model only, pictures the vision tower and the
output head, too.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from qil_jax.choices import AttentionKind
from qil_jax.errors import shown
from qil_jax.models.attention import Mask, attention
from qil_jax.models.axes import Axis, Constrain, unconstrained
from qil_jax.models.config import Blocks, Index, Size, require_none
from qil_jax.models.layers import RMSNorm, embedding, gated, linear
from qil_jax.models.rope import Rotary, mrope_embedding, rotary_embedding, rotate_half
from qil_jax.models.stack import Fold, scan_blocks, scan_blocks_in_place, stack_blocks
from qil_jax.models.vision_tower import VisionConfig, VisionTower
from qil_jax.options import Number, read_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How prompts are read on devices; all ways have the same result up to rounding.

    Attributes:
      fold: function that applies blocks one after another.
      kind: implementation of the vision tower's attention.
      rows_apart: whether the tower sees one picture after another, in the memory of one; for rows on one device.
    """

    fold: Fold = scan_blocks
    kind: AttentionKind = AttentionKind.XLA_CHUNKED
    rows_apart: bool = False


PLAIN = Execution()
ON_ONE_CPU = Execution(fold=scan_blocks_in_place, kind=AttentionKind.XLA_BY_HEAD, rows_apart=True)
OPTIONAL = ("image_token_id", "mrope_section")
"""Keys that some releases leave out, where they mean the default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2_5VLConfig:  # noqa: N801 (the model's own name)
    """Keys of text_encoder/config.json that the models need.

    Attributes:
      hidden_size: width of the residual stream.
      num_hidden_layers: number of decoder layers.
      num_attention_heads: number of heads of the queries.
      num_key_value_heads: number of heads of keys and values; divides `num_attention_heads`.
      intermediate_size: feed-forward width.
      vocab_size: number of rows of the embedding.
      rms_norm_eps: positive constant added to the mean square in every norm.
      rope_theta: base of the rotary embedding's wavelengths; positive.
      mrope_section: numbers of pairs of a head that rotate by time, row and column.
      image_token_id: id of the token for which a picture's tokens are substituted.
      vision: sizes of the vision tower.
    """

    hidden_size: Size = 3584
    num_hidden_layers: Blocks = 28
    num_attention_heads: Size = 28
    num_key_value_heads: Size = 4
    intermediate_size: Size = 18944
    vocab_size: Size = 152064
    rms_norm_eps: Number = 1e-6
    rope_theta: Number = 1e6
    mrope_section: tuple[Index, Index, Index] = (16, 24, 24)
    image_token_id: Index = 151655
    vision: VisionConfig = dataclasses.field(default_factory=VisionConfig)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = "text_encoder/config.json") -> "Qwen2_5VLConfig":
        """Parse the released JSON; its language keys are at the top level or, in newer files, under `text_config`.

        Raises:
          ConfigError: for a missing size, a value of a wrong type, heads that do not divide, a sliding window, a tied
            head, or an activation other than SiLU.
        """
        problems: list[str] = []
        text = {**values, **_inner(values, "text_config", problems)}
        # Older files have `rope_theta` on its own and the rest under `rope_scaling`.
        rope = {**_inner(text, "rope_scaling", problems), **_inner(text, "rope_parameters", problems)}
        text = {**{key: rope[key] for key in ("rope_theta", "mrope_section") if key in rope}, **text}
        names = [f.name for f in dataclasses.fields(cls) if f.name != "vision"]
        missing = [n for n in names if text.get(n) is None and n not in OPTIONAL]
        problems += [f"{n!r} is missing: copy it from the released config.json" for n in missing]
        for key, supported in {"use_sliding_window": False, "hidden_act": "silu", "tie_word_embeddings": False}.items():
            if text.get(key, supported) != supported:
                problems.append(f"{key} = {shown(text[key])} is not supported (only {supported!r})")
        found = read_fields(cls, {n: text[n] for n in names if text.get(n) is not None}, problems)
        vision = VisionConfig.fields_of(_inner(values, "vision_config", problems), problems)
        require_none(problems, where)
        config = cls(vision=VisionConfig(**vision), **found)
        require_none(_uneven(config), where)
        return config

    @property
    def head_dim(self) -> int:
        """Width of one attention head (128 in the release)."""
        return self.hidden_size // self.num_attention_heads


def _inner(values: Mapping[str, Any], key: str, problems: list[str]) -> Mapping[str, Any]:
    """The object at `key`, empty if there is none."""
    inner = values.get(key)
    if inner is not None and not isinstance(inner, Mapping):
        problems.append(f"{key} = {shown(inner)}: must be an object")
    return inner if isinstance(inner, Mapping) else {}


def _uneven(config: Qwen2_5VLConfig) -> list[str]:
    """A message for each width or number of heads that violates divisibility."""
    problems = []
    width, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    if width % (2 * heads):
        problems.append(f"hidden_size {width} must split into num_attention_heads {heads} of an even width")
    if heads % groups:
        problems.append(f"num_attention_heads {heads} must be a multiple of num_key_value_heads {groups}")
    if min(config.rms_norm_eps, config.rope_theta) <= 0:
        problems.append(f"rms_norm_eps {config.rms_norm_eps} and rope_theta {config.rope_theta} must be positive")
    return problems + config.vision.problems()


class DecoderLayer(nnx.Module):
    """Pre-norm attention with grouped keys and values, then a SwiGLU feed-forward network."""

    def __init__(self, config: Qwen2_5VLConfig, *, rngs: nnx.Rngs):
        d, eps = config.hidden_size, config.rms_norm_eps
        self.head_dim = config.head_dim
        heads = (config.num_attention_heads * self.head_dim, Axis.HEADS)
        groups = (config.num_key_value_heads * self.head_dim, Axis.HEADS)
        hidden = (config.intermediate_size, Axis.MLP)
        self.input_norm = RMSNorm(d, eps=eps)
        self.q = linear((d, Axis.EMBED), heads, rngs=rngs)
        self.k = linear((d, Axis.EMBED), groups, rngs=rngs)
        self.v = linear((d, Axis.EMBED), groups, rngs=rngs)
        self.o = linear(heads, (d, Axis.EMBED), bias=False, rngs=rngs)
        self.post_norm = RMSNorm(d, eps=eps)
        self.gate = linear((d, Axis.EMBED), hidden, bias=False, rngs=rngs)
        self.up = linear((d, Axis.EMBED), hidden, bias=False, rngs=rngs)
        self.down = linear(hidden, (d, Axis.EMBED), bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], rotary: Rotary, segments: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """The residual stream after this layer; `segments` is 1 on tokens and 0 on padding."""
        return self.finish(x, causal_attention(*self.heads(x, rotary), segments))

    def heads(
        self, x: Float[Array, "b t d"], rotary: Rotary
    ) -> tuple[Float[Array, "b t n h"], Float[Array, "b t g h"], Float[Array, "b t g h"]]:
        """Rotated queries, rotated keys, and values."""
        split = lambda y: y.reshape(*y.shape[:-1], -1, self.head_dim)
        y = self.input_norm(x)
        return rotate_half(split(self.q(y)), rotary), rotate_half(split(self.k(y)), rotary), split(self.v(y))

    def finish(self, x: Float[Array, "b t d"], mixed: Float[Array, "b t n h"]) -> Float[Array, "b t d"]:
        """The residual stream after this layer, from what attention made of its heads."""
        x = x + self.o(mixed.reshape(*mixed.shape[:2], -1))
        return x + gated(self.gate, self.up, self.down, self.post_norm(x))


def causal_attention(
    q: Float[Array, "b t n h"], k: Float[Array, "b t g h"], v: Float[Array, "b t g h"], segments: Int[Array, "b t"]
) -> Float[Array, "b t n h"]:
    """Causal attention within equal segment ids; n / g consecutive queries share a key."""
    k, v = (jnp.repeat(z, q.shape[2] // z.shape[2], axis=2) for z in (k, v))
    return attention(q, k, v, segments=(segments, segments), mask=Mask.CAUSAL)


class Language(nnx.Module):
    """Token embedding, decoder layers and final norm."""

    def __init__(self, config: Qwen2_5VLConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = embedding(config.vocab_size, config.hidden_size, axes=(Axis.VOCAB, Axis.EMBED), rngs=rngs)
        self.layers = stack_blocks(lambda rngs: DecoderLayer(config, rngs=rngs), config.num_hidden_layers, rngs=rngs)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(
        self, embedded: Float[Array, "b t d"], mask: Bool[Array, "b t"], constrain: Constrain = unconstrained
    ) -> Float[Array, "b t d"]:
        """The last hidden state of embedded tokens, which are padded on the right; positions count from 0."""
        positions = jnp.broadcast_to(jnp.arange(mask.shape[1])[None, :, None], (*mask.shape, 1))
        rotary = rotary_embedding(positions, (self.config.head_dim,), self.config.rope_theta)
        segments = mask.astype(jnp.int32)

        def step(layer: DecoderLayer, x: Array, _: None) -> Array:
            return constrain(layer(x, rotary, segments), (Axis.BATCH, None, None))

        return self.norm(scan_blocks(self.layers, step, embedded, None))

    def rotary(self, positions: Int[Array, "b t 3"]) -> Rotary:
        """Rotations by M-RoPE positions."""
        return mrope_embedding(positions, self.config.mrope_section, self.config.rope_theta)


class TextEncoder(nnx.Module):
    """The encoder from token ids to hidden states, with 7.07 B of the released text encoder's 8.29 B parameters."""

    def __init__(self, config: Qwen2_5VLConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.language = Language(config, rngs=rngs)

    def __call__(
        self, ids: Int[Array, "b t"], mask: Bool[Array, "b t"], *, constrain: Constrain = unconstrained
    ) -> Float[Array, "b t d"]:
        """The last hidden state, after the final norm.

        Args:
          ids: token ids, padded on the right.
          mask: true on tokens and false on padding, whose hidden states are unspecified.
        """
        return self.language(self.language.embed(ids), mask, constrain)


def prompt_positions(
    ids: Int[Array, "b t"], mask: Bool[Array, "b t"], grids: Int[Array, "b 2"], config: Qwen2_5VLConfig
) -> Int[Array, "b t 3"]:
    """M-RoPE positions (time, row, column) of prompts with at most one picture each.

    Text has three equal positions, which count on from token to token. The tokens of a picture have the time at which
    it begins, and rows and columns from there; the text behind it goes on after the longer side.

    Args:
      ids: token ids with `config.image_token_id` once for each token of the picture, padded on the right.
      mask: true on tokens; positions of padding are 0.
      grids: rows and columns of each picture in patches; (0, 0) without one.
      config: config of the model.
    """
    rows, columns = (grids[:, i, None] // config.vision.spatial_merge_size for i in (0, 1))
    index = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    start = jnp.argmax(ids == config.image_token_id, axis=1, keepdims=True)
    number, count = index - start, rows * columns
    row, column = jnp.divmod(number, jnp.maximum(columns, 1))
    picture = start[..., None] + jnp.stack([0 * row, row, column], axis=-1)
    text = jnp.where(number < count, index, index - count + jnp.maximum(rows, columns))
    is_picture = (number >= 0) & (number < count)
    return jnp.where(mask[..., None], jnp.where(is_picture[..., None], picture, text[..., None]), 0)


def text_encoder_of(language: Language) -> TextEncoder:
    """A text encoder that shares a language model and its parameters."""
    encoder = nnx.eval_shape(lambda: TextEncoder(language.config, rngs=nnx.Rngs(0)))
    encoder.language = language
    return encoder


class VisionLanguage(nnx.Module):
    """The whole model: language model, vision tower and output head, 8,292,166,656 parameters in the release."""

    def __init__(self, config: Qwen2_5VLConfig, *, rngs: nnx.Rngs):
        """Make the parts.

        Raises:
          ConfigError: if the tower's tokens do not have the width of the language model, or `mrope_section` does not
            have the pairs of a head.
        """
        width, tokens = config.hidden_size, config.vision.out_hidden_size
        pairs, sections = config.head_dim // 2, config.mrope_section
        misfits = {
            f"vision_config: out_hidden_size {tokens} is not the language model's hidden_size {width}": tokens != width,
            f"mrope_section {[*sections]} must have the sum {pairs}, half a head's width": sum(sections) != pairs,
        }
        require_none([problem for problem, is_so in misfits.items() if is_so], "text_encoder/config.json")
        self.config = config
        self.language = Language(config, rngs=rngs)
        self.visual = VisionTower(config.vision, rngs=rngs)
        self.lm_head = linear((width, Axis.EMBED), (config.vocab_size, Axis.VOCAB), bias=False, rngs=rngs)

    def embed(
        self,
        ids: Int[Array, "b t"],
        patches: Float[Array, "b n c"],
        grids: Int[Array, "b 2"],
        *,
        constrain: Constrain = unconstrained,
        how: Execution = PLAIN,
    ) -> Float[Array, "b t d"]:
        """Embedded prompts with a picture's tokens in place of the `config.image_token_id`, in their order.

        Args:
          ids: token ids, see `prompt_positions`.
          patches: patches of each prompt's picture, see `VisionTower`.
          grids: rows and columns of each picture in patches.
          constrain: constraint of activations to a mesh.
          how: how the tower is run.
        """
        embedded = self.language.embed(ids)
        see = functools.partial(self.visual, kind=how.kind, constrain=constrain, fold=how.fold)
        if how.rows_apart:
            tokens = jax.lax.map(lambda row: see(row[0][None], row[1][None])[0], (patches, grids))
        else:
            tokens = see(patches, grids)
        tokens = tokens.astype(embedded.dtype)
        is_picture = ids == self.config.image_token_id
        number = jnp.clip(jnp.cumsum(is_picture, axis=1) - 1, 0, tokens.shape[1] - 1)
        return jnp.where(is_picture[..., None], jnp.take_along_axis(tokens, number[..., None], axis=1), embedded)
