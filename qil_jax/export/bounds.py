"""How much one file of layers may hold. What holds more is refused before a pixel of it is decoded."""

import zipfile

from qil_jax.errors import QilError
from qil_jax.host_memory import require_memory

MOST_PIXELS = 1 << 30
"""Pixels of all layers of a file together, its groups and the pictures that are decoded included."""
MOST_BYTES = 2 << 30
"""Bytes of all members of an archive together, unpacked."""
MOST_NESTED = 32
"""Levels of groups within groups."""
PIXEL_BYTES = 8
"""Bytes that a pixel takes while layers are put together: four, twice."""


def require_pixels(pixels: int) -> None:
    """Refuse layers of more than `MOST_PIXELS` in all, or of more than fit into this host's memory.

    Raises:
      QilError: with the figures.
    """
    fix = "scale it down, or delete some of its layers"
    if pixels > MOST_PIXELS:
        raise QilError(f"its layers have {pixels:,} pixels in all; at most {MOST_PIXELS:,} are read: {fix}")
    require_memory(pixels * PIXEL_BYTES, f"reading its {pixels:,} pixels", fix)


def require_bytes(archive: zipfile.ZipFile) -> None:
    """Refuse archives whose members have more than `MOST_BYTES` in all, by what they say; no more of each is unpacked.

    Raises:
      QilError: with the figures.
    """
    there = sum(info.file_size for info in archive.infolist())
    if there > MOST_BYTES:
        raise QilError(f"{there:,} bytes unpacked; at most {MOST_BYTES:,} are: scale it down, or delete some layers")


def require_depth(depth: int) -> None:
    """Refuse groups that lie deeper than `MOST_NESTED`; a group on the canvas has depth 1.

    Raises:
      QilError: with the limit.
    """
    if depth > MOST_NESTED:
        raise QilError(f"groups within groups, more than {MOST_NESTED} deep: ungroup the innermost")
