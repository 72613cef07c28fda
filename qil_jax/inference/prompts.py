"""Prompts to token ids by the checkpoint's own tokenizer files (checkpoint.md 8.1)."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

SYSTEM = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:"
)
PREFIX = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 cuts text into words before merging bytes."""


class PromptTokenizer:
    """The released prompt template around a byte-level BPE tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.drop = len(self._encode(PREFIX))
        """Tokens of the template before the prompt, whose hidden states are dropped (34 with Qwen's vocabulary)."""

    @classmethod
    def load(cls, checkpoint: Path) -> "PromptTokenizer":
        """Read tokenizer.json, or vocab.json and merges.txt, from CHECKPOINT/tokenizer or CHECKPOINT/processor.

        Raises:
          FileNotFoundError: if neither folder holds a tokenizer.
          ValueError: if the files cannot be read as one.
        """
        for folder in (checkpoint / "tokenizer", checkpoint / "processor"):
            try:
                if (folder / "tokenizer.json").is_file():
                    return cls(Tokenizer.from_file(str(folder / "tokenizer.json")))
                if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                    return cls(_from_vocabulary(folder))
            except Exception as error:  # the tokenizers library raises bare exceptions
                raise ValueError(f"{folder}: cannot be read as a tokenizer ({error}); copy it again") from error
        raise FileNotFoundError(
            f"{checkpoint}/tokenizer: needs tokenizer.json, or vocab.json and merges.txt; copy them from the release"
        )

    def ids(self, prompt: str) -> list[int]:
        """Ids of the whole template around a prompt, the first `drop` of them before it. Never cut."""
        return self._encode(PREFIX + prompt + SUFFIX)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def _from_vocabulary(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    added = folder / "added_tokens.json"
    special = json.loads(added.read_text(encoding="utf-8")) if added.is_file() else {}
    tokens = sorted(special, key=special.__getitem__)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    wrong = [token for token in tokens if tokenizer.token_to_id(token) != special[token]]
    if wrong:
        raise ValueError(f"{added}: ids of {', '.join(wrong)} do not follow on from vocab.json")
    return tokenizer
