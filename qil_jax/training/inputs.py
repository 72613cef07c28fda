"""Conversion of the loader's batches to inputs of the step, by encoding pictures and captions or from a cache."""

import dataclasses
import functools
from enum import IntEnum

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from qil_jax.encoders.image_encoder import Autoencoder
from qil_jax.encoders.text_encoder import PromptEncoder
from qil_jax.flow.loss import FlowLoss
from qil_jax.loader.batch import NO_RECORD, Batch
from qil_jax.models.axes import Axis
from qil_jax.models.latents import pack
from qil_jax.models.vld_mmdit import TokenLayout
from qil_jax.training.batches import BOTTOM, NO_TARGET, UPPER, FlowBatch, PictureBatch, RowPlacement
from qil_jax.training.tokens import BatchTokens, batch_tokens


class _Draw(IntEnum):
    """Stream numbers of random draws on the host; the loader uses the lower ones."""

    DROPPED_PROMPT = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenShape:
    """Sizes of tokens and sequences of the transformer.

    Attributes:
      scale: number of pixels along the side of a latent.
      patch: number of latents along the side of a token.
      text: number of text tokens of a sample, including padding.
      ways: number of shards into which the mesh splits a sequence.
    """

    scale: int
    patch: int
    text: int
    ways: int = 1

    @property
    def pixels(self) -> int:
        """Side of the square that a token covers, in pixels."""
        return self.scale * self.patch


def picture_batch(batch: Batch, placement: RowPlacement) -> PictureBatch:
    """The batch of the RGBA-VAE that holds all pictures of all rows."""
    rows, pictures = batch.segments.shape
    numbers = (placement.first + np.arange(rows))[:, None] * pictures + np.arange(pictures)
    put = lambda x: placement.put(x, (Axis.BATCH, *(None,) * (x.ndim - 1)))
    return PictureBatch(
        pixels=put(batch.pictures.reshape(rows * pictures, *batch.pictures.shape[2:])),
        weights=put(batch.targets.reshape(-1).astype(np.float32)),
        rows=put(numbers.reshape(-1).astype(np.int32)),
    )


class OnlineInputs:
    """Inputs of the step from batches of pictures and captions, which are encoded during training."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        prompts: PromptEncoder,
        placement: RowPlacement,
        shape: TokenShape,
        loss: FlowLoss,
        *,
        seed: int,
    ):
        self.autoencoder, self.prompts, self.placement = autoencoder, prompts, placement
        self.shape, self.loss, self.seed = shape, loss, seed
        self.token_side = shape.pixels
        """Side of the square that a token covers in the batch's pictures, in pixels."""

    def __call__(self, batch: Batch) -> FlowBatch:
        """Encode this process's rows and lay them out as inputs of the step."""
        rows, samples = batch.records.shape
        dropped = dropped_prompts(batch, self.placement.first, self.loss.caption_dropout, self.seed)
        prompts = [
            self.loss.no_prompt if dropped[row, sample] else batch.captions[row][sample]
            for row in range(rows)
            for sample in range(samples)
        ]
        ids, lengths = self.prompts.padded_ids(prompts, max_tokens=self.shape.text)
        kept = np.clip(lengths - self.prompts.drop, 0, self.shape.text).reshape(rows, samples)
        put = functools.partial(self.placement.put, axes=(Axis.BATCH, None))
        states = self.prompts.encode_rows(put(ids), self.placement.put(lengths, (Axis.BATCH,)))
        latents = self.autoencoder.encode_rows(self.placement.put(batch.pictures, (Axis.BATCH, None, None, None, None)))
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
    """Inputs of the step from latents and hidden states cached by `qil cache-latents`."""

    def __init__(self, placement: RowPlacement, shape: TokenShape, loss: FlowLoss, *, seed: int):
        self.placement, self.shape, self.loss, self.seed = placement, shape, loss, seed
        self.token_side = shape.patch
        """Side of the square that a token covers in the batch's pictures, in latents."""

    def __call__(self, batch: Batch) -> FlowBatch:
        """Lay out this process's rows; `batch.states` holds the prompts' states, then those of the empty prompt."""
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


def dropped_prompts(batch: Batch, first: int, share: float, seed: int) -> Bool[np.ndarray, "b s"]:
    """A mask [b, s] of samples whose prompt is dropped; the draws do not depend on the number of processes.

    `first` is the index of this process's first row in the global batch, `share` the probability.
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
    """The input of the step, with sequences padded to multiples of the mesh's shards."""
    per_picture = laid.loss.shape[1] // batch.segments.shape[1]
    kinds = np.minimum(np.repeat(batch.layer_indices, per_picture, axis=1), UPPER)
    kinds = np.where(laid.loss, kinds, NO_TARGET).astype(np.int32)
    weights = np.where(kinds >= BOTTOM, loss.layer_weight, loss.composite_weight) * laid.loss

    def up(size: int) -> int:
        return -(-size // shape.ways) * shape.ways

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
    """Tokens padded with zeros. Without padding no operation is dispatched, which would wait for the current step."""
    return x if x.shape[1] == length else jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0)))


def sample_ids(batch: Batch) -> list[list[int]]:
    """Indices of the records in each row of a batch."""
    return [[int(record) for record in row if record != NO_RECORD] for row in batch.records]
