"""The reasons for which documents are dropped."""

from enum import StrEnum


class Reason(StrEnum):
    """Class of the reason for which a document is dropped, as reports count it."""

    UNREADABLE = "unreadable"  # psd-tools or the file system cannot read it
    TOO_LARGE = "too large"  # its canvas, before any pixel is read
    NO_LAYERS = "no layers"  # a flat picture
    TIME_LIMIT = "time limit"
    MEMORY_LIMIT = "memory limit"
    CRASHED = "crashed"  # the process that read it died
    NOT_EXPRESSIBLE = "not expressible"  # its layers, alpha-blended, do not give its picture
    MISDRAWN = "misdrawn"  # the compositor's picture is far from the one stored in the document
    TOO_SMALL = "too small"
    TOO_FEW_LAYERS = "too few layers"
    TOO_FLAT = "too flat"
    ANOMALY = "anomaly"
    DUPLICATE = "duplicate"
    BAD_SIDECAR = "bad sidecar"  # the file beside it that describes it cannot be used
    CAPTION_FAILED = "caption failed"


class Dropped(Exception):  # noqa: N818 (an outcome, not an error)
    """Raised for a document that is left out of the dataset; the build continues.

    Attributes:
      reason: class of the reason.
      detail: description of the fault.
    """

    def __init__(self, reason: Reason, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail
