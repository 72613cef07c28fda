"""Near-duplicates across documents, by perceptual hash."""

from collections.abc import Mapping

import imagehash
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from qil_jax.errors import QilError
from qil_jax.layers.compositing import over_white

BITS = 64


def perceptual_hash(picture: UInt8[np.ndarray, "y x 4"]) -> int:
    """The 64-bit perceptual hash (pHash) of a straight RGBA image over white; similar images differ in few bits."""
    hashed = imagehash.phash(Image.fromarray(over_white(picture)[..., :3]))
    return int(str(hashed), 16)


def near_duplicates(hashes: Mapping[str, int], max_bits: int) -> dict[str, str]:
    """The documents to drop, each with the document that it duplicates.

    In the order of their names, a document is dropped if it differs from one that is kept in at most `max_bits` bits.
    Hashes are cut into max_bits + 1 bands: two that differ in no more bits agree in at least one band, so only those
    are compared.

    Args:
      hashes: document name to its 64-bit hash.
      max_bits: maximum Hamming distance of duplicates, 0 to 15.

    Raises:
      QilError: if `max_bits` is outside this range.
    """
    if not 0 <= max_bits <= 15:
        raise QilError(f"max_bits is {max_bits}: take 0 (equal hashes) to 15 (alike)")
    edges = np.linspace(0, BITS, max_bits + 2).astype(int)
    bands = [(int(a), (1 << int(b - a)) - 1) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    seen: dict[tuple[int, int], list[str]] = {}
    dropped = {}
    for name in sorted(hashes):
        value = hashes[name]
        keys = [(i, value >> shift & mask) for i, (shift, mask) in enumerate(bands)]
        near = (other for key in keys for other in seen.get(key, ()))
        original = min((o for o in near if (hashes[o] ^ value).bit_count() <= max_bits), default=None)
        if original is not None:
            dropped[name] = original
            continue
        for key in keys:
            seen.setdefault(key, []).append(name)
    return dropped
