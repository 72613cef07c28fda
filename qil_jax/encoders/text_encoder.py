"""Encoding of prompts as the hidden states that the transformer attends to (docs/specification.md, 5)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from qil_jax.encoders.lengths import text_bucket
from qil_jax.encoders.tokenizer import PromptTokenizer
from qil_jax.mesh import fetch, put
from qil_jax.models.qwen2_5_vl import TextEncoder


class PromptEncoder:
    """A tokenizer and a language model on a mesh: prompts one by one, or batches of them sharded by rows."""

    def __init__(self, tokenizer: PromptTokenizer, model: TextEncoder, *, mesh: Mesh):
        self._tokenizer = tokenizer
        self._whole = NamedSharding(mesh, PartitionSpec())
        graph, self.state = nnx.split(model)
        self._run = jax.jit(functools.partial(_hidden_states, graph))

    @property
    def drop(self) -> int:
        """Tokens of the template before the prompt, whose states are dropped."""
        return self._tokenizer.drop

    def __call__(self, prompts: list[str], *, max_tokens: int) -> dict[str, Float[np.ndarray, "n e"]]:
        """Hidden states of each distinct prompt, without the template's prefix and without padding, fp32.

        Prompts are run one by one: a prompt's states do not depend on its neighbours, to the last bit.

        Args:
          prompts: arbitrary strings; " " gives 6 vectors, "" gives 5.
          max_tokens: maximum number of states per prompt; further ones are cut off.
        """
        return {prompt: self._encode(prompt)[:max_tokens] for prompt in dict.fromkeys(prompts)}

    def padded_ids(
        self, prompts: list[str], *, max_tokens: int
    ) -> tuple[Int[np.ndarray, "n s"], Int[np.ndarray, " n"]]:
        """Ids of the template and each prompt, padded to drop + `max_tokens` or cut there, and how many there are."""
        longest = self.drop + max_tokens
        out, lengths = np.zeros((len(prompts), longest), np.int32), np.zeros(len(prompts), np.int32)
        for i, prompt in enumerate(prompts):
            ids = self._tokenizer.ids(prompt)[:longest]
            out[i, : len(ids)], lengths[i] = ids, len(ids)
        return out, lengths

    def encode_rows(self, ids: Int[Array, "n s"], lengths: Int[Array, " n"]) -> Float[Array, "n t e"]:
        """Hidden states of `padded_ids`, sharded alike, without the template's prefix; zero beyond their ends, fp32."""
        return self._run(self.state, ids, lengths)[:, self.drop :]

    def lower(self, prompt: str) -> jax.stages.Lowered:
        """The program of a prompt, of which other prompts of similar length make use; parameters may be abstract."""
        ids, length = self._padded(prompt)
        whole = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._whole)
        return self._run.lower(self.state, whole(ids), whole(length))

    def _encode(self, prompt: str) -> np.ndarray:
        ids, length = self._padded(prompt)
        states = self._run(self.state, put(ids, self._whole), put(length, self._whole))
        return fetch(states)[0, self.drop : int(length[0])]

    def _padded(self, prompt: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids [1, s] of the template and the prompt, padded, and their number [1]."""
        ids = self._tokenizer.ids(prompt)
        padded = np.zeros((1, text_bucket(len(ids))), np.int32)
        padded[0, : len(ids)] = ids
        return padded, np.array([len(ids)], np.int32)


def _hidden_states(graph: nnx.GraphDef[TextEncoder], state: nnx.State, ids: Array, lengths: Array) -> Array:
    """Hidden states [n, s, e] in fp32, zero beyond `lengths`."""
    mask = jnp.arange(ids.shape[1])[None] < lengths[:, None]
    states = nnx.merge(graph, state)(ids, mask).astype(jnp.float32)
    return jnp.where(mask[..., None], states, 0)
