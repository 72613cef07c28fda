"""The checkpoint that comes with the package: a small model for 64-pixel scenes (docs/demo.md)."""

from importlib.resources import files
from pathlib import Path


def shipped_checkpoint() -> Path:
    """Its folder, in the released layout."""
    return Path(str(files(__name__) / "demonstration"))
