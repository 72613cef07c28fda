"""The formats of layered images."""

from enum import StrEnum


class Format(StrEnum):
    """A format of layered images; its value is the suffix of its files."""

    PNG = "png"  # a folder of PNGs with a manifest
    PSD = "psd"
    PPTX = "pptx"
    ORA = "ora"
    ZIP = "zip"

    @property
    def file(self) -> str:
        """The format's file in a result, whose PNGs are always there."""
        return f"layers.{self}"
