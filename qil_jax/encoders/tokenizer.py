"""Tokenization of prompts with the checkpoint's own tokenizer files (docs/specification.md, 5)."""

from collections.abc import Sequence

from tokenizers import Tokenizer

SYSTEM = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:"
)
PREFIX = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"


class PromptTokenizer:
    """The released prompt template around a byte-level BPE tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        """Take the tokenizer of a checkpoint, which stays as it is."""
        self._tokenizer = tokenizer
        self.drop = len(self._encode(PREFIX))
        """Number of the template's tokens before the prompt, whose states are dropped: 34 with Qwen's vocabulary."""

    def ids(self, prompt: str) -> list[int]:
        """Token ids of the template with the prompt inserted, never truncated; the first `drop` precede the prompt."""
        return self._encode(PREFIX + prompt + SUFFIX)

    def count(self, prompt: str) -> int:
        """The number of states that a prompt conditions by: its tokens, and the template's after it."""
        return len(self.ids(prompt)) - self.drop

    def chat_ids(self, chat: str) -> list[int]:
        """Token ids of a text as it stands, special tokens by their names."""
        return self._encode(chat)

    def id_of(self, token: str) -> int | None:
        """The id of a token; None if the vocabulary lacks it."""
        return self._tokenizer.token_to_id(token)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids
