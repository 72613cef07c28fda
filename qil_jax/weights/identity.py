"""Fingerprint of a checkpoint's content, independent of the name of its folder."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from qil_jax.weights.tables.entries import Component

PARTS = (*Component, "scheduler", "tokenizer", "processor")
"""The folders of a checkpoint that determine its results."""
WHOLE = 64 << 20
"""Maximum size in bytes of files that are hashed completely."""
STRIDE, PIECE = 4 << 20, 4 << 10
"""Larger files are hashed by the first PIECE bytes of every STRIDE, as a training step changes every tensor."""


def fingerprint(checkpoint: Path, parts: Sequence[str] = PARTS) -> str:
    """16 hexadecimal digits that depend on weights, configs and tokenizer, but not on folder names.

    Only a thousandth of large files is read: the fingerprint identifies a checkpoint, but does not detect damage. It
    differs between the two layouts of a checkpoint.

    Args:
      checkpoint: folder that holds model_index.json.
      parts: names of the subfolders that are hashed; absent ones are skipped.

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
