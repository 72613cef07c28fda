"""Layout of pictures with different sizes, layer counts and prompts as one padded batch of token sequences.

Lengths are rounded up (`encoders.lengths`), so that similar batches share a compiled program. A row of the batch is
[composite, layer 1, ..., layer L, condition, padding], with positions and segment ids.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from qil_jax.choices import Passes
from qil_jax.encoders.lengths import image_bucket, round_up, text_bucket
from qil_jax.mesh import Sharding
from qil_jax.models.axes import Axes, Axis
from qil_jax.models.latents import pack
from qil_jax.models.rope import LayerIndex, image_positions, text_offset, text_positions
from qil_jax.models.vld_mmdit import TokenLayout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """The sampler's inputs for one picture. Latents are normalised.

    Attributes:
      noise: initial latents of the sampler: the composite, then the layers from the bottom to the top.
      condition: latents of the picture that is decomposed.
      prompt: hidden states of the prompt's tokens.
      negative: hidden states of the negative prompt's tokens; None: no guidance.
      sigmas: steps + 1 noise levels from 1 to 0.
    """

    noise: Float[np.ndarray, "l1 h w z"]
    condition: Float[np.ndarray, "h w z"]
    prompt: Float[np.ndarray, "n e"]
    negative: Float[np.ndarray, "m e"] | None
    sigmas: Float[np.ndarray, " steps1"]

    def grid(self, patch: int) -> tuple[int, int]:
        """Rows and columns of one picture in tokens."""
        return self.condition.shape[0] // patch, self.condition.shape[1] // patch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceBatch:
    """Input arrays of one run of the sampler, with b samples and g passes of each (2 with guidance, otherwise 1).

    The arrays are numpy's on the host, and shapes where a program is compiled only.

    Attributes:
      tokens: noise of the composites and layers, latents of the conditions, and zeros for padding.
      is_target: true for tokens that are denoised.
      sigmas: noise levels of each sample.
      scales: guidance scale of each sample; 1 for samples without guidance.
      text: hidden states of all prompts, then those of all negative prompts.
      layout: positions and segments of the gb rows.
    """

    tokens: Float[Any, "b t c"]
    is_target: Bool[Any, "b t"]
    sigmas: Float[Any, "steps1 b"]
    scales: Float[Any, " b"]
    text: Float[Any, "gb s e"]
    layout: TokenLayout

    @property
    def passes(self) -> int:
        """Number of rows per sample: 2 with guidance, otherwise 1."""
        return self.text.shape[0] // self.tokens.shape[0]

    def place(self, put: Callable[[Any, Axes], Any], *, by_sample: bool = False) -> "SequenceBatch":
        """A copy of the batch in which each array is replaced by `put` of the array and its logical axes.

        Args:
          put: function whose results take the place of the arrays.
          by_sample: whether the rows are put in the order of the samples, with all passes of one beside each other.
        """
        rows = (self.passes, self.tokens.shape[0])

        def by_rows(x: Any) -> Any:
            if by_sample and isinstance(x, np.ndarray):
                x = x.reshape(*rows, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
            return put(x, (Axis.BATCH, Axis.TOKENS, None)[: len(x.shape)])

        return SequenceBatch(
            tokens=put(self.tokens, (Axis.SAMPLE, Axis.TOKENS, None)),
            is_target=put(self.is_target, (Axis.SAMPLE, Axis.TOKENS)),
            sigmas=put(self.sigmas, (None, Axis.SAMPLE)),
            scales=put(self.scales, (Axis.SAMPLE,)),
            text=by_rows(self.text),
            layout=jax.tree.map(by_rows, self.layout),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ways:
    """Numbers of shards into which the mesh splits the axes of a batch.

    Attributes:
      samples: number of shards of the samples.
      rows: number of shards of the transformer's rows, which are samples times passes.
      tokens: number of shards of a sequence.
    """

    samples: int = 1
    rows: int = 1
    tokens: int = 1

    @classmethod
    def of(cls, sharding: Sharding, passes: Passes = Passes.BATCH) -> "Ways":
        """The numbers of a sharding; sequential passes have no more rows than samples."""
        samples = sharding.ways(Axis.SAMPLE)
        rows = sharding.ways(Axis.BATCH) if passes is Passes.BATCH else samples
        return cls(samples=samples, rows=rows, tokens=sharding.ways(Axis.RESIDUAL))


def build_batch(items: list[Item], *, patch: int, guidance: float, ways: Ways, samples: int = 1) -> SequenceBatch:
    """Lay out `items`, with samples, image tokens and text tokens padded to lengths that many batches share.

    All are multiples of the mesh's shards, and samples are at least `samples`. Rows added as padding repeat the last
    item, so that their values are finite; the caller drops them.
    """
    guided = guidance > 1 and any(item.negative is not None for item in items)
    rows = math.lcm(ways.samples, ways.rows // math.gcd(ways.rows, 2 if guided else 1))
    items = items + [items[-1]] * (round_up(max(len(items), samples), rows) - len(items))
    sequences = [_image_sequence(item, patch) for item in items]
    longest = round_up(image_bucket(max(len(tokens) for tokens, _, _ in sequences)), ways.tokens)
    texts = [item.prompt for item in items]
    if guided:
        texts += [item.prompt if item.negative is None else item.negative for item in items]
    width = round_up(text_bucket(max(len(text) for text in texts)), ways.tokens)
    passes = len(texts) // len(items)
    offsets = [text_offset(item.grid(patch), targets=len(item.noise)) for item in items] * passes
    return SequenceBatch(
        tokens=_stack([tokens for tokens, _, _ in sequences], longest),
        is_target=_stack([is_target for _, is_target, _ in sequences], longest),
        sigmas=np.stack([item.sigmas for item in items], axis=1),
        scales=np.array([1.0 if item.negative is None else max(guidance, 1.0) for item in items], np.float32),
        text=_stack(texts, width),
        layout=TokenLayout(
            image_positions=_stack([positions for _, _, positions in sequences] * passes, longest),
            text_positions=_stack(
                [text_positions(len(t), offset=o) for t, o in zip(texts, offsets, strict=True)], width
            ),
            image_segments=_stack([np.ones(len(tokens), np.int32) for tokens, _, _ in sequences] * passes, longest),
            text_segments=_stack([np.ones(len(t), np.int32) for t in texts], width),
        ),
    )


def _image_sequence(item: Item, patch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, target mask and positions of one row before padding."""
    targets = len(item.noise)
    pictures = np.concatenate([item.noise, item.condition[None]])
    layers = (LayerIndex.COMPOSITE, *range(1, targets), LayerIndex.CONDITION)
    positions = image_positions(item.grid(patch), layers)
    is_target = np.arange(len(positions)) < len(positions) // len(pictures) * targets
    return pack(pictures, patch), is_target, positions


def _stack(rows: list[np.ndarray], length: int) -> np.ndarray:
    """Rows padded at the end to a common length with zeros (or false), and stacked."""
    out = np.zeros((len(rows), length, *rows[0].shape[1:]), rows[0].dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
