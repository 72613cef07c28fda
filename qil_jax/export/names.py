"""Conversion of layer names to file names that are valid on every system, and to text that every format can hold."""

import re
import unicodedata

RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    "conin$",
    "conout$",
    *(f"{p}{i}" for p in ("com", "lpt") for i in "123456789¹²³"),
}


def safe_name(name: str, fallback: str = "layer") -> str:
    """A file name of letters and digits of any script and '._-', at most 60 UTF-8 bytes, never empty or reserved."""
    text = unicodedata.normalize("NFC", name)
    text = re.sub(r"[^\w.-]+", "_", text).strip("._ -")
    text = text.encode()[:60].decode(errors="ignore").rstrip("._ -")
    return fallback if not text or text.lower().split(".")[0] in RESERVED else text


def plain_text(name: str) -> str:
    """A name without the characters that XML or UTF-8 cannot hold, each replaced by U+FFFD."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", name)
