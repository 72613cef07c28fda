"""Writing of text by Qwen2.5-VL's language model: a prompt is read at once, then one token of each row at a time.

A row's tokens depend on its own prompt, picture and seed only: not on its neighbours, nor on padding.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Float32, Int, UInt32

from qil_jax.models.axes import Axis, Constrain, unconstrained
from qil_jax.models.qwen2_5_vl import (
    PLAIN,
    DecoderLayer,
    Execution,
    VisionLanguage,
    causal_attention,
    prompt_positions,
)
from qil_jax.models.stack import Fold, scan_blocks

HEADS = (None, Axis.BATCH, Axis.HEADS, None, None)
ROWS = (Axis.BATCH, None, None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts with one picture each, padded at the end; the arrays are numpy's on the host.

    Attributes:
      ids: token ids, with the model's `image_token_id` once for each token of the picture.
      lengths: numbers of tokens; 0 in a row that pads the batch.
      patches: patches of the pictures, see `VisionTower`.
      grids: rows and columns of each picture in patches.
    """

    ids: Int[Any, "b t"]
    lengths: Int[Any, " b"]
    patches: Float[Any, "b n c"]
    grids: Int[Any, "b 2"]

    @property
    def mask(self) -> Bool[Array, "b t"]:
        """True on tokens, false on padding."""
        return jnp.arange(self.ids.shape[1]) < self.lengths[:, None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """What is kept of the tokens that were read, in arrays of a size that does not change.

    Attributes:
      keys, values: keys and values of all layers; each token has a slot.
      mask: slots that hold a token.
      seen: ids that the row has.
      slot: the slot of the next token, the same in all rows.
      position: M-RoPE position of the next token.
    """

    keys: Float[Array, "k b g s h"]
    values: Float[Array, "k b g s h"]
    mask: Bool[Array, "b s"]
    seen: Bool[Array, "b v"]
    slot: Int[Array, ""]
    position: Int[Array, " b"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """How a row's next token is chosen from its logits. All of it is data: no value compiles anything.

    Attributes:
      repetition_penalty: factor by which logits of tokens in the row are divided, or multiplied where negative.
      is_sampled: whether a token is drawn; otherwise it is the most likely one, and the following are without effect.
      temperature: divisor of the logits.
      top_k: number of the most likely tokens that are kept.
      top_p: probability that the kept tokens at least have together.
      seeds: seeds of the rows' random numbers.
    """

    repetition_penalty: Float32[Any, " b"]
    is_sampled: Bool[Any, " b"]
    temperature: Float32[Any, " b"]
    top_k: Int[Any, " b"]
    top_p: Float32[Any, " b"]
    seeds: UInt32[Any, " b"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
      ids: token ids; those from `lengths` on are unspecified.
      lengths: numbers of ids before the stop id, if there is one.
    """

    ids: Int[Any, "b n"]
    lengths: Int[Any, " b"]


def prefill(
    model: VisionLanguage,
    prompts: Prompts,
    *,
    room: int,
    constrain: Constrain = unconstrained,
    how: Execution = PLAIN,
) -> tuple[Float32[Array, "b v"], Cache]:
    """Read prompts: the logits of the first token to write, and the cache with `room` slots for those to write.

    Args:
      model: the model.
      prompts: prompts with their pictures.
      room: number of free slots.
      constrain: constraint of activations to a mesh.
      how: how vision tower and language model are run.
    """
    config, mask = model.config, prompts.mask
    positions = prompt_positions(prompts.ids, mask, prompts.grids, config)
    rotary = model.language.rotary(positions)
    embedded = model.embed(prompts.ids, prompts.patches, prompts.grids, constrain=constrain, how=how)
    rows, count = mask.shape
    shape = (config.num_hidden_layers, rows, config.num_key_value_heads, count + room, config.head_dim)
    empty = constrain(jnp.zeros(shape, embedded.dtype), HEADS)

    def step(layer: DecoderLayer, carry: Any, index: Array) -> Any:
        x, keys, values = carry
        q, k, v = layer.heads(x, rotary)
        x = layer.finish(x, causal_attention(q, k, v, mask.astype(jnp.int32)))
        return constrain(x, ROWS), _store(keys, k, index, 0), _store(values, v, index, 0)

    start = (constrain(embedded, ROWS), empty, empty)
    x, keys, values = how.fold(model.language.layers, step, start, jnp.arange(shape[0]))
    last = jnp.take_along_axis(x, jnp.maximum(prompts.lengths - 1, 0)[:, None, None], axis=1)
    cache = Cache(
        keys=constrain(keys, HEADS),
        values=constrain(values, HEADS),
        mask=jnp.pad(mask, ((0, 0), (0, room))),
        seen=jnp.zeros((rows, config.vocab_size), bool).at[jnp.arange(rows)[:, None], prompts.ids].max(mask),
        slot=jnp.asarray(count, jnp.int32),
        position=jnp.max(positions, axis=(1, 2)) + 1,
    )
    return _logits(model, last, constrain), cache


def read_token(
    model: VisionLanguage,
    ids: Int[Array, " b"],
    cache: Cache,
    *,
    constrain: Constrain = unconstrained,
    fold: Fold = scan_blocks,
) -> tuple[Float32[Array, "b v"], Cache]:
    """Read one more token of each row: the logits of the next one, and the cache with this one in it.

    Args:
      model: the model.
      ids: token ids.
      cache: cache with a free slot.
      constrain: constraint of activations to a mesh.
      fold: function that applies the layers one after another.
    """
    mask, seen = cache.mask.at[:, cache.slot].set(True), cache.seen.at[jnp.arange(len(ids)), ids].set(True)
    rotary = model.language.rotary(jnp.broadcast_to(cache.position[:, None, None], (len(ids), 1, 3)))
    embedded = constrain(model.language.embed(ids[:, None]), ROWS)

    def step(layer: DecoderLayer, carry: Any, index: Array) -> Any:
        x, keys, values = carry
        q, k, v = layer.heads(x, rotary)
        keys, values = _store(keys, k, index, cache.slot), _store(values, v, index, cache.slot)
        at = lambda stored: jax.lax.dynamic_index_in_dim(stored, index, keepdims=False)
        x = layer.finish(x, attend_to_cache(q, at(keys), at(values), mask))
        return constrain(x, ROWS), keys, values

    start = (embedded, cache.keys, cache.values)
    x, keys, values = fold(model.language.layers, step, start, jnp.arange(len(cache.keys)))
    keys, values = constrain(keys, HEADS), constrain(values, HEADS)
    slot, position = cache.slot + 1, cache.position + 1
    cache = Cache(keys=keys, values=values, mask=mask, seen=seen, slot=slot, position=position)
    return _logits(model, x, constrain), cache


def attend_to_cache(
    q: Float[Array, "b 1 n h"], keys: Float[Array, "b g s h"], values: Float[Array, "b g s h"], mask: Bool[Array, "b s"]
) -> Float[Array, "b 1 n h"]:
    """Attention of one token to the slots of its row that hold one; n / g consecutive queries share a key."""
    grouped = q.reshape(len(q), keys.shape[1], -1, q.shape[-1])
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = product("bgrh,bgsh->bgrs", grouped, keys) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -jnp.inf), axis=-1)
    return product("bgrs,bgsh->bgrh", weights.astype(values.dtype), values).astype(q.dtype).reshape(q.shape)


def decode(
    model: VisionLanguage,
    read: tuple[Float32[Array, "b v"], Cache],
    choice: Choice,
    *,
    room: int,
    limit: Int[Array, ""],
    stops: Int[Array, " e"],
    constrain: Constrain = unconstrained,
    fold: Fold = scan_blocks,
) -> tuple[Written, Cache]:
    """Write until every row has a stop id, or `limit` ids.

    Args:
      model: the model.
      read: what `prefill` returned.
      choice: how tokens are chosen.
      room: number of free slots of the cache, and of ids in the result.
      limit: largest number of ids; at most `room`.
      stops: ids that end a row.
      constrain: constraint of activations to a mesh.
      fold: function that applies the layers one after another.

    Returns:
      The ids, and the cache, for its buffers to be used again.
    """
    logits, cache = read

    def write(carry: Any) -> Any:
        logits, cache, written, is_done, count = carry
        ids = chosen(logits, cache.seen, choice, count)
        is_done = is_done | jnp.isin(ids, stops)
        written = Written(ids=written.ids.at[:, count].set(ids), lengths=written.lengths + ~is_done)
        logits, cache = read_token(model, ids, cache, constrain=constrain, fold=fold)
        return logits, cache, written, is_done, count + 1

    nothing = Written(ids=jnp.zeros((len(logits), room), jnp.int32), lengths=jnp.zeros(len(logits), jnp.int32))
    start = (logits, cache, nothing, ~jnp.any(cache.mask, axis=1), jnp.asarray(0))
    is_going = lambda carry: ~jnp.all(carry[3]) & (carry[4] < limit)
    _, cache, written, *_ = jax.lax.while_loop(is_going, write, start)
    return written, cache


def chosen(
    logits: Float32[Array, "b v"], seen: Bool[Array, "b v"], choice: Choice, count: Int[Array, ""]
) -> Int[Array, " b"]:
    """The next token of each row, whose `count` tokens before it were chosen with the same seed."""
    scores = penalised(logits, seen, choice.repetition_penalty)
    likeliest = jnp.argmax(scores, axis=-1).astype(jnp.int32)

    def draw(seed: Array, scores: Array) -> Array:
        return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), count), scores)

    def drawn() -> Array:
        kept = filtered(scores, choice.temperature, choice.top_k, choice.top_p)
        ids = jax.vmap(draw)(choice.seeds, kept)
        return jnp.where(choice.is_sampled, ids.astype(jnp.int32), likeliest)

    return jax.lax.cond(jnp.any(choice.is_sampled), drawn, lambda: likeliest)


def penalised(
    logits: Float32[Array, "b v"], seen: Bool[Array, "b v"], penalty: Float32[Array, " b"]
) -> Float32[Array, "b v"]:
    """Logits, of seen tokens divided by the penalty, or multiplied by it where they are negative."""
    penalty = penalty[:, None]
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def filtered(
    scores: Float32[Array, "b v"],
    temperature: Float32[Array, " b"],
    top_k: Int[Array, " b"],
    top_p: Float32[Array, " b"],
) -> Float32[Array, "b v"]:
    """Scores over temperature, -inf where they are not among the `top_k` largest, or beyond probability `top_p`.

    Of what `top_k` leaves, those are dropped that have at most 1 - top_p of probability together, never the likeliest;
    scores that are equal are kept or dropped together.
    """
    scores = scores / temperature[:, None]
    ascending = jnp.sort(scores, axis=-1)
    size = scores.shape[-1]
    least = jnp.take_along_axis(ascending, size - jnp.clip(top_k, 1, size)[:, None], axis=-1)
    ascending = jnp.where(ascending < least, -jnp.inf, ascending)
    below = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1)
    first = jnp.sum(below <= 1 - top_p[:, None], axis=-1, keepdims=True)
    least = jnp.take_along_axis(ascending, jnp.minimum(first, size - 1), axis=-1)
    return jnp.where(scores < least, -jnp.inf, scores)


def _store(cache: Array, x: Array, layer: Array, slot: Array | int) -> Array:
    """A cache [k, b, g, s, h] with x [b, t, g, h] in a layer's slots from `slot` on."""
    return jax.lax.dynamic_update_slice(cache, jnp.swapaxes(x, 1, 2)[None], (layer, 0, 0, slot, 0))


def _logits(model: VisionLanguage, x: Array, constrain: Constrain) -> Array:
    """Logits [b, v] in fp32 of the residual stream [b, 1, d], whole on every device of a row."""
    logits = model.lm_head(model.language.norm(x))[:, 0]
    return constrain(logits.astype(jnp.float32), (Axis.BATCH, None))
