"""Which checkpoint it is: a fingerprint of its content, whatever its folder is called."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from qil_jax.weights.tables.entries import Component

PARTS = (*Component, "scheduler", "tokenizer", "processor")
"""The folders of a checkpoint that decide what it computes."""
WHOLE = 64 << 20
"""Files up to so many bytes are hashed whole."""
STRIDE, PIECE = 4 << 20, 4 << 10
"""Of larger files, the first PIECE bytes of every STRIDE: a training step alters every tensor, so these differ."""


def fingerprint(checkpoint: Path, parts: Sequence[str] = PARTS) -> str:
    """16 hexadecimal digits that change with weights, configs and tokenizer, and not with names of folders.

    Reads a thousandth of large files: it says which checkpoint this is, not whether a byte of it is damaged. A
    conversion to the other layout changes it.

    Args:
      checkpoint: the folder that holds model_index.json.
      parts: folders in it that count; those that are absent are left out.

    Raises:
      OSError: if a file cannot be read.
    """
    digest = hashlib.sha256()
    for part in parts:
        for file in sorted(path for path in (checkpoint / part).rglob("*") if path.is_file()):
            inside = file.relative_to(checkpoint)
            if not any(name.startswith(".") for name in inside.parts):
                digest.update(f"{inside.as_posix()}\0{file.stat().st_size}\0".encode())
                _update(digest, file)
    return digest.hexdigest()[:16]


def _update(digest: "hashlib._Hash", file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= WHOLE:
            digest.update(stream.read())
            return
        for start in (*range(0, size, STRIDE), size - PIECE):
            stream.seek(start)
            digest.update(stream.read(PIECE))
