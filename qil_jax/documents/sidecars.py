"""Sidecars, the files beside a document that describe it: `poster.json` and `poster.txt` of `poster.psd`."""

from etils import epath

from qil_jax.documents.reasons import Dropped, Reason
from qil_jax.errors import QilError, halved
from qil_jax.files import text_beside
from qil_jax.strict_json import parse

FIELDS = ("source", "licence", "category")


def sidecar_fields(document: str) -> dict[str, str]:
    """The fields, among FIELDS, of the document's JSON sidecar; empty without a sidecar.

    Raises:
      Dropped: if the file cannot be read, or is no JSON object of texts.
    """
    text = document_text(document, ".json")
    if text is None:
        return {}
    name = epath.Path(document).with_suffix(".json").name
    try:
        values = parse(text)
    except QilError as error:
        raise Dropped(Reason.BAD_SIDECAR, f"{name} {error}: mend it, or take it away") from error
    if not isinstance(values, dict):
        raise Dropped(Reason.BAD_SIDECAR, f"{name} must be an object with any of {', '.join(FIELDS)}")
    fields = {field: values[field] for field in FIELDS if values.get(field) is not None}
    wrong = [f"{field} is {value!r:.40}" for field, value in fields.items() if not _is_text(value)]
    if wrong:
        raise Dropped(Reason.BAD_SIDECAR, f"{name}: {', '.join(wrong)}: must be a text")
    return fields


def document_text(document: str, suffix: str) -> str | None:
    """The text of the file with the document's name but this suffix; None if there is no such file.

    Raises:
      Dropped: if the file cannot be read, or is not UTF-8.
    """
    try:
        return text_beside(epath.Path(document), suffix)
    except ValueError as error:
        raise Dropped(Reason.BAD_SIDECAR, str(error)) from error


def _is_text(value: object) -> bool:
    """Whether a value is text that UTF-8 can encode: JSON may hold half of a surrogate pair."""
    return isinstance(value, str) and not halved(value)
