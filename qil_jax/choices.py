"""Choices and bounds of options. This module imports nothing heavy: command lines know them before JAX is imported.

The modules that act on an option import its choices from here, and nowhere are their values written again.
"""

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

RESOLUTION = 640
"""The default bucket: pictures are resized to about this many pixels squared. The release also supports 1024."""
MULTIPLE = 32
"""Both sides of the model's input picture are multiples of this many pixels."""
MAX_LAYERS = 20
"""The largest number of layers in the release's training data (arXiv 2512.15603, section 4.2)."""
AUTO = "auto"
"""In place of a number of layers: as many as the program finds."""
MAX_PROMPT_TOKENS = 1024
"""The largest number of a prompt's tokens that diffusers' pipelines take (`max_sequence_length`)."""
MAX_DEPTH = 8
"""The largest depth of recursion."""
MAX_SEED = 2**32 - 1
"""The largest seed: jax.random.key uses 32 bits and would ignore higher ones."""
LONGEST_TEXT = 20_000
"""Maximum number of characters of a text, such as a prompt. The default limit of its tokens is reached much sooner."""
LARGEST = 3e38
"""The largest number: about that of fp32, in which numbers are used."""


class Rescale(StrEnum):
    """The rescaling of a guided velocity's norm."""

    NONE = "none"
    NORM = "norm"  # each token's guided velocity is rescaled to the norm of its conditional one


class Passes(StrEnum):
    """The way in which the two forward passes of guidance are computed."""

    BATCH = "batch"  # as rows of one batch, which the mesh's axis cfg may split
    SEQUENTIAL = "sequential"  # one after the other: half the activations


class Split(StrEnum):
    """The layers of a stack that recursion decomposes again."""

    ALL = "all"
    LARGEST = "largest"  # the layer that covers most


class OutputSize(StrEnum):
    """The size at which layers are written."""

    MODEL = "model"
    INPUT = "input"


class Edges(StrEnum):
    """How layers are brought to the size of a larger picture."""

    REFINED = "refined"  # with edges and colours found in the picture
    PLAIN = "plain"  # interpolated


class CaptionLanguage(StrEnum):
    """The language in which the model is asked for a caption, and answers."""

    EN = "en"
    ZH = "zh"


class Residency(StrEnum):
    """The policy by which components stay in device memory."""

    ALL = "all"  # all but the captioner are loaded at once, and all stay: repeated calls are fast
    PHASES = "phases"  # each is loaded when its phase begins and freed when another phase begins: least memory


class Precision(StrEnum):
    """A dtype of parameters and activations."""

    FP32 = "float32"
    BF16 = "bfloat16"


class Quantisation(StrEnum):
    """The type of a quantised kernel's elements."""

    INT8 = "int8"  # whole numbers from -127 to 127
    FP8 = "fp8"  # float8_e4m3fn

    @property
    def dtype(self) -> "np.dtype":
        """The dtype of the elements."""
        import ml_dtypes
        import numpy as np

        return np.dtype(np.int8 if self is Quantisation.INT8 else ml_dtypes.float8_e4m3fn)

    @property
    def largest(self) -> float:
        """The element by which the largest weight of a channel is represented."""
        return 127.0 if self is Quantisation.INT8 else 448.0


class AttentionKind(StrEnum):
    """The implementation of attention."""

    XLA = "xla"  # one matrix of scores, b * n * t * s values
    XLA_CHUNKED = "xla_chunked"  # scores of a chunk of queries of all heads at a time, in bounded memory
    XLA_BY_HEAD = "xla_by_head"  # chunks of one head at a time: fastest on a CPU; samples and heads must not be sharded
    SPLASH = "splash"  # Pallas splash attention on TPUs, by `kernels`
    CUDNN = "cudnn"  # cuDNN's flash attention on GPUs, by `kernels`
    TOKAMAX = "tokamax"  # the kernels of the package tokamax, by `kernels`


class Spread(StrEnum):
    """The way in which queries meet the keys of other devices where a sequence is split over the axis `context`."""

    NONE = "none"  # they do not: every device holds whole sequences
    GATHER = "gather"  # each device gathers all keys and values: any number of heads, most memory and traffic
    ULYSSES = "ulysses"  # all-to-all from tokens to heads and back: least traffic; arXiv 2309.14509
    RING = "ring"  # keys and values travel round the devices: least memory; arXiv 2310.01889


class Weights(StrEnum):
    """What the devices along `context` hold of the transformer's and the text encoder's kernels."""

    SPLIT = "split"  # a part each, gathered block by block: least memory
    WHOLE = "whole"  # the same, which moves least: for chips that have room


class Remat(StrEnum):
    """The activations that a block keeps for the backward pass; the others are recomputed."""

    NONE = "none"  # everything is kept: fastest
    DOTS = "dots"  # the products with parameters are kept
    BLOCK = "block"  # only the inputs of blocks are kept: least memory, a third more compute


class Inputs(StrEnum):
    """The form of the records from which batches are made."""

    PICTURES = "pictures"  # pictures and captions, encoded while training
    LATENTS = "latents"  # latents and text states that `qil cache-latents` wrote


class OptimiserKind(StrEnum):
    """The rule by which gradients change parameters."""

    ADAMW = "adamw"
    MUON = "muon"  # of the kernels of blocks (`training.muon.KERNELS`), AdamW of all other parameters


class LRSchedule(StrEnum):
    """The schedule of the learning rate after the warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"  # falls to `final_fraction` of the peak at the last step


class Reconstruction(StrEnum):
    """The kind of the VAE's reconstruction term."""

    AB_MSE = "ab_mse"  # squared error after blending over a random background, in closed form
    AB_L1 = "ab_l1"  # absolute error after blending over one background drawn per picture
