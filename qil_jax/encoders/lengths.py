"""Few shapes for many inputs: lengths are rounded up, so that a folder of mixed pictures compiles few programs."""

SHORTEST_TEXT = 32
"""Minimum number of text tokens."""
IMAGE_PARTS, TEXT_PARTS = 16, 2
"""Lengths per doubling of the number of tokens: more of them mean less padding, fewer mean fewer programs."""


def image_bucket(tokens: int) -> int:
    """The number of image tokens to which a row is padded: less than 1/16 more than `tokens`."""
    return round_up(tokens, _step(tokens, IMAGE_PARTS))


def text_bucket(tokens: int) -> int:
    """The number of text tokens to which a prompt is padded: 32, 48, 64, 96, 128, 192 and so on."""
    return max(SHORTEST_TEXT, round_up(tokens, _step(tokens, TEXT_PARTS)))


def row_bucket(samples: int, most: int) -> int:
    """The number of samples to which a smaller batch is padded: a power of two, or `most`."""
    return min(1 << (samples - 1).bit_length(), most)


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple


def _step(size: int, parts: int) -> int:
    """The power of two of which at least `parts` and less than 2 * `parts` make up `size`; 1 for small sizes."""
    return max(1, (1 << max(size, 1).bit_length() - 1) // parts)
