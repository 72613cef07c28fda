"""Files beside a document that say more of it: `poster.json` and `poster.txt` of `poster.psd`."""

import json

from etils import epath

from qil_jax.documents.reasons import Dropped, Reason
from qil_jax.files import text_beside

FIELDS = ("source", "licence", "category")


def facts_beside(document: str) -> dict[str, str]:
    """What `poster.json` says: any of FIELDS. Other fields are left alone, and no file says nothing.

    Raises:
      Dropped: if the file cannot be read, or is no JSON object of texts.
    """
    text = document_text(document, ".json")
    if text is None:
        return {}
    name = epath.Path(document).with_suffix(".json").name
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Dropped(Reason.BAD_SIDECAR, f"{name} is not JSON: {error}: mend it, or take it away") from error
    if not isinstance(told, dict):
        raise Dropped(Reason.BAD_SIDECAR, f"{name} must be an object with any of {', '.join(FIELDS)}")
    facts = {field: told[field] for field in FIELDS if told.get(field) is not None}
    wrong = [f"{field} is {value!r:.40}" for field, value in facts.items() if not _is_text(value)]
    if wrong:
        raise Dropped(Reason.BAD_SIDECAR, f"{name}: {', '.join(wrong)}: must be a text")
    return facts


def document_text(document: str, suffix: str) -> str | None:
    """The text of the file of the document's name and this suffix; None if there is none.

    Raises:
      Dropped: if the file cannot be read, or is not UTF-8.
    """
    try:
        return text_beside(epath.Path(document), suffix)
    except ValueError as error:
        raise Dropped(Reason.BAD_SIDECAR, str(error)) from error


def _is_text(value: object) -> bool:
    """JSON can also hold half a surrogate pair, which no file can."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()
