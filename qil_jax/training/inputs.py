"""The loader's batches as inputs of the step: pictures and captions encoded, or cached encodings laid out."""

import dataclasses
import functools
from enum import IntEnum

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int, UInt8

from qil_jax.encoders.tokenizer import PromptTokenizer
from qil_jax.flow.loss import FlowLoss
from qil_jax.loader.batch import NO_RECORD, Batch
from qil_jax.models.axes import Axis
from qil_jax.models.latents import pack
from qil_jax.models.qwen2_5_vl import TextEncoder
from qil_jax.models.rgba_vae import RGBAVAE
from qil_jax.models.vld_mmdit import TokenLayout
from qil_jax.training.batches import BOTTOM, NO_TARGET, UPPER, FlowBatch, PictureBatch, RowPlacement
from qil_jax.training.tokens import BatchTokens, batch_tokens


class _Draw(IntEnum):
    """Random draws on the host; the loader's own have the first numbers."""

    DROPPED_PROMPT = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenShape:
    """Sizes of tokens and sequences.

    Attributes:
      scale: pixels along the side of a latent.
      patch: latents along the side of a token.
      text: text tokens of a sample, padding included.
      ways: parts that the mesh cuts a sequence into.
    """

    scale: int
    patch: int
    text: int
    ways: int = 1

    @property
    def pixels(self) -> int:
        """Side of the square that a token covers, in pixels."""
        return self.scale * self.patch


class PictureEncoder:
    """The frozen RGBA-VAE on batches of pictures."""

    def __init__(self, vae: RGBAVAE):
        self.scale = vae.config.scale_factor
        graph, self._state = nnx.split(vae)
        self._run = jax.jit(functools.partial(_encode, graph))

    def __call__(self, pixels: UInt8[Array, "b p y x 4"]) -> Float[Array, "b p h w z"]:
        """Normalised latents (the posterior's mode), one picture of each row at a time."""
        return self._run(self._state, pixels)


def _encode(graph: nnx.GraphDef[RGBAVAE], state: nnx.State, pixels: Array) -> Array:
    vae = nnx.merge(graph, state)
    dtype = vae.quant_conv.kernel[...].dtype

    def one(picture: Array) -> Array:
        scaled = (picture.astype(jnp.float32) / 127.5 - 1).astype(dtype)
        return vae.normalise(vae.encode(scaled).mode()).astype(jnp.float32)

    return jnp.moveaxis(jax.lax.map(one, jnp.moveaxis(pixels, 1, 0)), 0, 1)


class CaptionEncoder:
    """The tokenizer and the frozen language model on batches of prompts."""

    def __init__(self, tokenizer: PromptTokenizer, model: TextEncoder, *, width: int):
        """`width`: largest number of tokens of a prompt that are kept."""
        self._tokenizer, self._width = tokenizer, width
        graph, self._state = nnx.split(model)
        self._run = jax.jit(functools.partial(_states, graph))

    def ids(self, prompts: list[str]) -> tuple[Int[np.ndarray, "n s"], Int[np.ndarray, " n"]]:
        """Padded ids of each prompt in its template, and their number, without those that are cut off."""
        longest = self._tokenizer.drop + self._width
        out, lengths = np.zeros((len(prompts), longest), np.int32), np.zeros(len(prompts), np.int32)
        for i, prompt in enumerate(prompts):
            ids = self._tokenizer.ids(prompt)[:longest]
            out[i, : len(ids)], lengths[i] = ids, len(ids)
        return out, lengths

    def __call__(self, ids: Int[Array, "n s"], lengths: Int[Array, " n"]) -> Float[Array, "n width e"]:
        """States of the prompts, without the template's prefix, zero beyond their ends."""
        return self._run(self._state, ids, lengths)[:, self.drop :]

    @property
    def drop(self) -> int:
        """Tokens of the template before the prompt."""
        return self._tokenizer.drop


def _states(graph: nnx.GraphDef[TextEncoder], state: nnx.State, ids: Array, lengths: Array) -> Array:
    mask = jnp.arange(ids.shape[1])[None] < lengths[:, None]
    states = nnx.merge(graph, state)(ids, mask).astype(jnp.float32)
    return jnp.where(mask[..., None], states, 0)


def picture_batch(batch: Batch, placement: RowPlacement) -> PictureBatch:
    """All pictures of all rows, for the RGBA-VAE."""
    rows, pictures = batch.segments.shape
    numbers = (placement.first + np.arange(rows))[:, None] * pictures + np.arange(pictures)
    local = PictureBatch(
        pixels=batch.pictures.reshape(rows * pictures, *batch.pictures.shape[2:]),  # type: ignore[arg-type]
        weights=batch.targets.reshape(-1).astype(np.float32),  # type: ignore[arg-type]
        rows=numbers.reshape(-1).astype(np.int32),  # type: ignore[arg-type]
    )
    return jax.tree.map(lambda x: placement.put(x, (Axis.BATCH, *(None,) * (x.ndim - 1))), local)


class OnlineInputs:
    """Batches of pictures and captions, encoded as they come."""

    def __init__(
        self,
        pictures: PictureEncoder,
        captions: CaptionEncoder,
        placement: RowPlacement,
        shape: TokenShape,
        loss: FlowLoss,
        *,
        seed: int,
    ):
        self.pictures, self.captions, self.placement = pictures, captions, placement
        self.shape, self.loss, self.seed = shape, loss, seed
        self.token_side = shape.pixels
        """Side of the square that a token covers in the batch's pictures, in pixels."""

    def __call__(self, batch: Batch) -> FlowBatch:
        """Encode and lay out this process's rows."""
        rows, samples = batch.records.shape
        dropped = dropped_prompts(batch, self.placement.first, self.loss.caption_dropout, self.seed)
        prompts = [
            self.loss.no_prompt if dropped[row, sample] else batch.captions[row][sample]
            for row in range(rows)
            for sample in range(samples)
        ]
        ids, lengths = self.captions.ids(prompts)
        kept = np.clip(lengths - self.captions.drop, 0, self.shape.text).reshape(rows, samples)
        put = functools.partial(self.placement.put, axes=(Axis.BATCH, None))
        states = self.captions(put(ids), self.placement.put(lengths, (Axis.BATCH,)))
        latents = self.pictures(self.placement.put(batch.pictures, (Axis.BATCH, None, None, None, None)))
        laid = batch_tokens(batch, kept, width=self.shape.text, token_side=self.token_side)
        return flow_batch(
            batch,
            pack(latents, self.shape.patch),
            states.reshape(-1, samples * self.shape.text, states.shape[-1]),
            laid,
            self.placement,
            self.shape,
            self.loss,
        )


class CachedInputs:
    """Batches of latents and states that `tools/cache_latents.py` wrote."""

    def __init__(self, placement: RowPlacement, shape: TokenShape, loss: FlowLoss, *, seed: int):
        self.placement, self.shape, self.loss, self.seed = placement, shape, loss, seed
        self.token_side = shape.patch
        """Side of the square that a token covers in the batch's pictures, in latents."""

    def __call__(self, batch: Batch) -> FlowBatch:
        """Lay out this process's rows. `batch.states` hold the prompt's states, then those of no prompt."""
        assert batch.states is not None and batch.lengths is not None
        rows, samples = batch.records.shape
        dropped = dropped_prompts(batch, self.placement.first, self.loss.caption_dropout, self.seed).astype(int)
        pick = np.arange(rows)[:, None], np.arange(samples)[None], dropped
        states, lengths = batch.states[pick][:, :, : self.shape.text], batch.lengths[pick]
        states = states.reshape(rows, samples * states.shape[2], -1).astype(np.float32)
        tokens = pack(batch.pictures.astype(np.float32), self.shape.patch)
        put = functools.partial(self.placement.put, axes=(Axis.BATCH, None, None))
        kept = np.minimum(lengths, self.shape.text)
        laid = batch_tokens(batch, kept, width=self.shape.text, token_side=self.token_side)
        return flow_batch(batch, put(tokens), put(states), laid, self.placement, self.shape, self.loss)


def dropped_prompts(batch: Batch, first: int, share: float, seed: int) -> np.ndarray:
    """Whether each sample [b, s] loses its prompt; the draws do not depend on the number of processes.

    `first` is the number of this process's first row in the whole batch, `share` the probability.
    """
    rows, samples = batch.records.shape
    draws = [
        np.random.default_rng([seed, _Draw.DROPPED_PROMPT, batch.step, first + row]).random(samples)
        for row in range(rows)
    ]
    return np.stack(draws) < share


def flow_batch(
    batch: Batch,
    tokens: Float[Array, "b t c"],
    states: Float[Array, "b s e"],
    laid: BatchTokens,
    placement: RowPlacement,
    shape: TokenShape,
    loss: FlowLoss,
) -> FlowBatch:
    """The batch that the step reads, with sequences padded to lengths that the mesh divides."""
    per_picture = laid.loss.shape[1] // batch.segments.shape[1]
    kinds = np.minimum(np.repeat(batch.layer_indices, per_picture, axis=1), UPPER)
    kinds = np.where(laid.loss, kinds, NO_TARGET).astype(np.int32)
    weights = np.where(kinds >= BOTTOM, loss.layer_weight, loss.composite_weight) * laid.loss
    up = lambda size: -(-size // shape.ways) * shape.ways  # noqa: E731
    image, text = up(kinds.shape[1]), up(laid.layout.text_segments.shape[1])

    def padded(x: np.ndarray, length: int, value: int = 0) -> np.ndarray:
        widths = [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
        return np.pad(x, widths, constant_values=value)

    layout = TokenLayout(
        image_positions=padded(np.asarray(laid.layout.image_positions), image),
        text_positions=padded(np.asarray(laid.layout.text_positions), text),
        image_segments=padded(np.asarray(laid.layout.image_segments), image),
        text_segments=padded(np.asarray(laid.layout.text_segments), text),
    )
    put = placement.put_all
    return FlowBatch(
        clean=_lengthened(tokens, image),
        text=_lengthened(states, text),
        layout=put(layout),
        weights=put(padded(weights.astype(np.float32), image)),
        kinds=put(padded(kinds, image, NO_TARGET)),
        target_kinds=placement.put(batch.target_kinds, (Axis.BATCH,)),
        rows=placement.put((placement.first + np.arange(len(kinds))).astype(np.int32), (Axis.BATCH,)),
        picture_tokens=placement.put(np.full(len(kinds), per_picture, np.int32), (Axis.BATCH,)),
    )


def _lengthened(x: Float[Array, "b t c"], length: int) -> Float[Array, "b t2 c"]:
    """Tokens padded with zeros. Without padding nothing is sent to the devices, where it would wait for the step."""
    return x if x.shape[1] == length else jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0)))


def sample_ids(batch: Batch) -> list[list[int]]:
    """Numbers of the records in each row of a batch."""
    return [[int(record) for record in row if record != NO_RECORD] for row in batch.records]
