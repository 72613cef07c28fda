"""Prompts to the hidden states that the transformer attends to (checkpoint.md 8.1)."""

import functools

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from qil_jax.encoders.tokenizer import PromptTokenizer
from qil_jax.models.qwen2_5_vl import TextEncoder

TEXT_BUCKET = 32
"""Text is padded to a multiple of this many tokens, so that prompts of like length share a compiled program."""


class PromptEncoder:
    """A tokenizer and a language model on a mesh."""

    def __init__(self, tokenizer: PromptTokenizer, model: TextEncoder, *, mesh: Mesh):
        self._tokenizer = tokenizer
        self._whole = NamedSharding(mesh, PartitionSpec())
        graph, self._state = nnx.split(model)
        self._run = jax.jit(functools.partial(_hidden_states, graph))

    def __call__(self, prompts: list[str], *, max_tokens: int) -> dict[str, Float[np.ndarray, "n e"]]:
        """Hidden states of each distinct prompt, without the template's prefix and without padding, fp32.

        Prompts are run one by one: a prompt's states do not depend on its neighbours, to the last bit.

        Args:
          prompts: any strings; " " gives 6 vectors, "" gives 5.
          max_tokens: states beyond this many are cut off at the end.
        """
        return {prompt: self._encode(prompt)[:max_tokens] for prompt in dict.fromkeys(prompts)}

    def _encode(self, prompt: str) -> np.ndarray:
        ids = self._tokenizer.ids(prompt)
        length = -(-len(ids) // TEXT_BUCKET) * TEXT_BUCKET
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(ids)] = ids
        mask = np.arange(length)[None] < len(ids)
        states = self._run(self._state, jax.device_put(padded, self._whole), jax.device_put(mask, self._whole))
        return np.asarray(states[0, self._tokenizer.drop : len(ids)], np.float32)


def _hidden_states(graph: nnx.GraphDef[TextEncoder], state: nnx.State, ids: jax.Array, mask: jax.Array) -> jax.Array:
    return nnx.merge(graph, state)(ids, mask)
