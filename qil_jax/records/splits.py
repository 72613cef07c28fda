"""Which split something belongs to: by its own hash, so that it stays where it is when others come and go."""

import hashlib

SPLITS = {"train": 0.9, "validation": 0.95, "test": 1.0}
"""Upper ends of the shares of the hashes."""


def split_of(digest: str) -> str:
    """The split of a hash, given as hexadecimal digits."""
    share = int(digest[:8], 16) / 0x1_0000_0000
    return next(split for split, end in SPLITS.items() if share < end)


def split_of_text(text: str) -> str:
    """The split of whatever a text names."""
    return split_of(hashlib.sha256(text.encode()).hexdigest())
