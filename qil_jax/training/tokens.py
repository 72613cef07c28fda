"""Layout of a batch of pictures as tokens of the transformer: positions, segment ids, and loss mask."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from qil_jax.errors import QilError
from qil_jax.loader.batch import Batch
from qil_jax.models.rope import image_positions, text_offset, text_positions
from qil_jax.models.vld_mmdit import TokenLayout


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BatchTokens:
    """Positions and loss mask of a batch's tokens.

    Attributes:
      layout: positions and segments; the texts of a row's samples are concatenated, each padded to `width` tokens.
      loss: mask that is true for image tokens of targets, and false for conditions and padding.
    """

    layout: TokenLayout
    loss: Bool[np.ndarray, "b t"]


def batch_tokens(
    batch: Batch, text_lengths: Int[np.ndarray, "b s"], *, width: int, token_side: int = 16
) -> BatchTokens:
    """Lay out image tokens (picture by picture, row-major) and text tokens (sample by sample).

    Args:
      batch: rows of one process.
      text_lengths: number of text tokens of each sample; values of absent samples are ignored.
      width: number of text tokens to which each sample is padded, at least `max(text_lengths)`.
      token_side: side of the square that a token covers, in pixels or, for cached latents, in latents.

    Raises:
      QilError: if a text is longer than `width`.
    """
    if text_lengths.max(initial=0) > width:
        raise QilError(f"a text of {text_lengths.max()} tokens does not fit into {width}: cut it or raise the width")
    rows, pictures = batch.segments.shape
    samples = batch.records.shape[1]
    grid = batch.pictures.shape[2] // token_side, batch.pictures.shape[3] // token_side
    count = grid[0] * grid[1]
    positions = [image_positions(grid, tuple(row)) for row in batch.layer_indices.tolist()]
    text = np.zeros((rows, samples, width, 3), np.int32)
    segments = np.zeros((rows, samples, width), np.int32)
    for row in range(rows):
        for sample in range(samples):
            mine = batch.segments[row] == sample + 1
            length = int(text_lengths[row, sample])
            if not mine.any() or not length:
                continue
            offset = text_offset(grid, targets=int((mine & batch.targets[row]).sum()))
            text[row, sample, :length] = text_positions(length, offset=offset)
            segments[row, sample, :length] = sample + 1
    layout = TokenLayout(
        image_positions=np.stack(positions).reshape(rows, pictures * count, 3),
        text_positions=text.reshape(rows, -1, 3),
        image_segments=np.repeat(batch.segments, count, axis=1),
        text_segments=segments.reshape(rows, -1),
    )
    return BatchTokens(layout=layout, loss=np.repeat(batch.targets, count, axis=1))
