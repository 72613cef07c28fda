"""Conversion of layer names to file names that are valid on every system."""

import re
import unicodedata

RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}


def safe_name(name: str, fallback: str = "layer") -> str:
    """A file name of letters and digits of any script and '._-', at most 60 UTF-8 bytes, never empty or reserved."""
    text = unicodedata.normalize("NFC", name)
    text = re.sub(r"[^\w.-]+", "_", text).strip("._ ")
    text = text.encode()[:60].decode(errors="ignore")
    return fallback if not text or text.lower().split(".")[0] in RESERVED else text
