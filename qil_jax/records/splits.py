"""Splits by hash: an item stays in its split when others are added or removed."""

import hashlib
import math
from itertools import accumulate

SPLITS = {"train": 0.9, "validation": 0.05, "test": 0.05}
"""Share of each split."""


def records_for(split: str, count: int) -> int:
    """Number of records of which `split` gets `count`: exactly of scenes, on average of documents."""
    return math.ceil(count / SPLITS[split])


def split_of(digest: str) -> str:
    """The split of a hash, given as at least 8 hexadecimal digits."""
    position = int(digest[:8], 16) / 0x1_0000_0000
    ends = accumulate(SPLITS.values())
    return next(split for split, end in zip(SPLITS, ends, strict=True) if position < end)


def split_of_text(text: str) -> str:
    """The split of an item that a text identifies."""
    return split_of(hashlib.sha256(text.encode()).hexdigest())
